"""What is measured while serving: times by size, rates, arrivals, memory."""

from __future__ import annotations

import math
import random

import pytest

from services.common.meter import Meter
from services.common.pace import Arrivals, MemoryLimit, Pace, ServiceRate


def measured(*passes: tuple[float, float]) -> Pace:
    pace = Pace()
    for size, seconds in passes:
        pace.observe(size, seconds, 0.0)
    return pace


def test_time_lies_on_lines_between_measured_sizes() -> None:
    pace = measured((4, 0.1), (8, 0.14), (32, 0.5))
    assert pace.seconds(4) == pytest.approx(0.1)
    assert pace.seconds(6) == pytest.approx(0.12)
    assert pace.seconds(2) == pytest.approx(0.05)
    assert pace.seconds(64) == pytest.approx(1.0)
    assert Pace().seconds(5) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_batch_within_a_time_is_the_inverse_of_its_time(seed: int) -> None:
    rng = random.Random(seed)
    pace = measured(*((2**n, 0.02 + 0.01 * 2**n * rng.uniform(0.9, 1.1)) for n in range(6)))
    for _ in range(50):
        limit_s = rng.uniform(0.03, 1.0)
        size = pace.largest(limit_s, 1000)
        assert pace.seconds(size) == pytest.approx(limit_s)
        assert pace.largest(limit_s, 3) <= 3
    assert Pace().largest(0.1, 32) == 32


def test_a_pass_that_was_held_up_once_is_not_believed() -> None:
    pace = measured((1, 5.0), (1, 0.03), (1, 0.03))
    assert pace.seconds(1) == pytest.approx(0.03)


def test_a_size_that_was_too_slow_is_tried_again_later() -> None:
    pace = measured((8, 0.1), (32, 3.0))
    assert pace.largest(0.5, 32) < 16
    pace.observe(8, 0.1, 100.0)
    assert pace.largest(0.5, 32) == 32


def test_the_rate_forgets_with_time() -> None:
    rate = ServiceRate(memory_s=5)
    assert rate.per_s == 0
    for _ in range(100):
        rate.observe(10, 0.5)
    assert rate.per_s == pytest.approx(20)
    for _ in range(40):
        rate.observe(10, 1.0)
    assert rate.per_s == pytest.approx(10, rel=0.01)


def test_a_lone_caller_is_not_kept_waiting_and_many_are() -> None:
    alone, many = Arrivals(), Arrivals()
    for n in range(100):
        alone.note(n * 0.02)
        many.note(n * 0.0005)
    assert alone.wait_until(1.98, 0.002) == 1.98
    assert 0.0495 < many.wait_until(0.0495, 0.002) <= 0.0495 + 0.002
    assert Arrivals().wait_until(3.0, 0.002) == 3.0


def test_waiting_ends_when_those_who_were_to_come_have_come() -> None:
    bursts = Arrivals()
    for n in range(50):
        for k in range(8):
            bursts.note(n + k * 1e-4)
    assert bursts.wait_until(49.0, 0.05) < 49.0 + 0.01


def test_memory_is_tried_again_step_by_step() -> None:
    memory = MemoryLimit(memory_s=100)
    assert memory.at(1e9) == math.inf
    memory.shrink(32, 1000.0)
    assert [memory.at(1000.0 + s) for s in (0, 99, 100, 250)] == [16, 16, 32, 64]
    memory.shrink(16, 1010.0)
    memory.shrink(1, 1020.0)
    assert memory.at(1020.0) == 1


def test_a_meter_keeps_batches_within_the_time_and_items_running() -> None:
    meter = Meter(32, max_batch_s=0.1)
    assert meter.room(0) == 32
    meter.pace.observe(1, 0.02, 0.0)
    assert meter.room(0) == pytest.approx(5)
    meter.pace.observe(1, 0.5, 1.0)
    meter.pace.observe(1, 0.5, 1.0)
    meter.pace.observe(1, 0.5, 1.0)
    assert meter.room(1) == 1


def test_waiting_time_is_that_of_the_passes_ahead() -> None:
    meter = Meter(8)
    assert meter.wait_s(100, 0.0) == 0
    meter.pace.observe(8, 0.4, 0.0)
    assert meter.wait_s(4, 0.0) == pytest.approx(1.2 * 0.2)
    assert meter.wait_s(24, 0.0) == pytest.approx(1.2 * 1.2)
    meter.begin(8, 10.0)
    assert meter.wait_s(8, 10.1) == pytest.approx(0.3 + 1.2 * 0.4)


def test_only_a_queue_that_is_long_tells_what_can_be_served() -> None:
    meter = Meter(8)
    meter.pace.observe(8, 0.4, 0.0)
    for n in range(1, 50):
        meter.end(1, inside=0, now_s=float(n))
    assert meter.per_s(50) == pytest.approx(20)
    for n in range(50, 90):  # something else has half of the device
        meter.end(8, inside=100, now_s=50 + (n - 50) * 0.8)
    assert meter.per_s(90) == pytest.approx(10, rel=0.05)
