"""Who is let in, and what those hear who are not."""

from __future__ import annotations

import math
import random

import pytest
from google.rpc import code_pb2, error_details_pb2

from services.common.admission import Door, Load, Place
from services.common.errors import NotInTime, Overloaded, QuotaReached, from_status
from services.common.fairness import Flow, Weights

A, B, C = Flow("a"), Flow("b"), Flow("c")


def door(items: int = 100, cost: float = math.inf, weights: Weights | None = None) -> Door:
    return Door("m", Load(items, cost), weights or Weights())


def ask(at: Door, flow: Flow, items: int, *, cost: float = 0.0, now_s: float = 0.0) -> None:
    load = Load(items, cost or items)
    at.check_room(flow, load, now_s=now_s, per_s=10.0)
    at.enter(flow, load)


def fill(at: Door, flow: Flow, *, now_s: float = 0.0) -> int:
    """Enter one by one until refused; the number inside."""
    count = 0
    while True:
        try:
            ask(at, flow, 1, now_s=now_s)
        except Overloaded:
            return count
        count += 1


def test_a_flood_leaves_room_for_newcomers_one_after_the_other() -> None:
    at = door(120)
    assert fill(at, A) == 60
    assert fill(at, B) == 40
    ask(at, C, 1)


def test_a_refused_project_makes_others_leave_it_room() -> None:
    at = door(100)
    ask(at, A, 50)
    ask(at, B, 33)
    with pytest.raises(Overloaded):
        ask(at, C, 30)
    at.leave(A, Load(25, 25))
    with pytest.raises(QuotaReached):  # the fourth part now that C asks
        ask(at, A, 1)
    ask(at, C, 30)
    at.leave(C, Load(30, 30))
    ask(at, A, 1, now_s=10.0)


def test_room_goes_by_the_weight_of_projects_and_jobs_count_for_themselves() -> None:
    at = door(100, weights=Weights({"a": 3.0}, job=0.01))
    assert fill(at, A) == 75
    at = door(120)
    assert fill(at, Flow("a", shard=True)) == 60
    assert fill(at, A) == 40


def test_what_could_never_enter_enters_alone() -> None:
    at = door(10)
    ask(at, A, 500)
    with pytest.raises(Overloaded):
        ask(at, B, 1)
    at.leave(A, Load(500, 500))
    ask(at, B, 2)
    ask(at, A, 8)  # over its share, but the first of its flow and within the room


def test_cost_is_a_limit_of_its_own() -> None:
    at = Door("m", Load(100, 1000), Weights(), unit="tokens")
    ask(at, A, 1, cost=400)
    with pytest.raises(QuotaReached):
        ask(at, A, 1, cost=101)
    with pytest.raises(Overloaded, match="the limits are 100 and 1,000"):
        ask(at, B, 1, cost=601)


def test_hints_say_how_long_until_there_is_room() -> None:
    at = door(100)
    ask(at, A, 40)
    ask(at, B, 30)
    with pytest.raises(Overloaded) as full:
        ask(at, C, 50)
    assert full.value.retry_after_s == pytest.approx(20 / 10)
    with pytest.raises(QuotaReached) as quota:
        ask(at, B, 8)  # a quarter of the room now that C asks as well
    assert quota.value.retry_after_s == pytest.approx((38 - 25) / 5)
    with pytest.raises(Overloaded) as unknown:
        at.check_room(C, Load(50, 50), now_s=0.0, per_s=0.0)
    assert unknown.value.retry_after_s == 1.0


def test_a_quota_is_told_as_one() -> None:
    at = door(10)
    ask(at, A, 5)
    with pytest.raises(QuotaReached) as refused:
        ask(at, A, 1)
    status = refused.value.to_status()
    kinds = [one.type_url.rsplit(".", 1)[1] for one in status.details]
    assert (status.code, kinds) == (
        code_pb2.RESOURCE_EXHAUSTED,
        ["ErrorInfo", "RetryInfo", "QuotaFailure"],
    )
    failure = error_details_pb2.QuotaFailure()
    assert status.details[2].Unpack(failure)
    assert failure.violations[0].subject == "projects/a"
    again = from_status(status)
    assert isinstance(again, Overloaded)
    assert again.retry_after_s == pytest.approx(refused.value.retry_after_s)


def test_what_comes_too_late_is_refused() -> None:
    at = door()
    at.check_time(wait_s=9.0, time_left_s=None)
    at.check_time(wait_s=0.5, time_left_s=1.0)
    with pytest.raises(NotInTime) as refused:
        at.check_time(wait_s=9.0, time_left_s=1.0)
    assert refused.value.retry_after_s == pytest.approx(8.0)


def test_ahead_is_what_fair_shares_serve_before() -> None:
    at = door(10_000)
    at.enter(A, Load(500, 500))
    assert at.ahead(B, 1) == 2  # one of the flood's beside it
    assert at.ahead(A, 1) == 501
    at.enter(B, Load(10, 10))
    assert at.ahead(A, 1) == 511
    job = Flow("c", shard=True)
    assert at.ahead(job, 5) == pytest.approx(5 + 50 + 10)


@pytest.mark.parametrize("seed", range(3))
def test_places_give_back_exactly_what_they_took(seed: int) -> None:
    rng, at, places = random.Random(seed), door(10_000), []
    for _ in range(300):
        if places and rng.random() < 0.5:
            place = places.pop(rng.randrange(len(places)))
            for _ in range(rng.randint(0, 3)):
                place.release(Load(3, 3.0))
            place.leave()
            place.leave()
        else:
            items, hold = rng.randint(1, 9), rng.random() < 0.3
            flow = rng.choice([A, B, C])
            places.append(Place(at, flow, Load(items, items), hold=hold))
    for place in places:
        place.leave()
    assert (at.total, dict(at._inside)) == (Load(), {})
