"""A prune job through real services, on a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.e2e import language
from tests.e2e.suite import PROJECT, Suite
from tests.e2e.tiny import model_names, prune, tiny_suite
from tests.student import language_suite

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    with tiny_suite(tmp_path_factory.mktemp("prune")) as found:
        yield found


def test_a_cut_is_ranked_trained_and_served(running: Suite) -> None:
    asked = prune(non_embedding_share=0.6, candidates=2, ranking_steps=1, controls=True)
    job = running.finish(running.create(asked), timeout_s=300)
    assert job.model == f"{PROJECT}/models/{language_suite.MODEL}-pruned"
    report: dict[str, Any] = running.read_json(job.report.digest)
    got, arms = report["size"]["got"], {arm["arm"]: arm for arm in report["arms"]}
    assert 0.4 < got["non_embedding_share"] <= 0.6
    assert set(arms) == {"prune", "no_distillation", "random_cut", "random_weights"}
    assert {arm["steps"] for arm in arms.values()} == {4}
    assert len({arm["trained_tokens"] for arm in arms.values()}) == 1
    for measured in (report["before"], report["after"], report["references"]["full"]):
        assert {"cross_entropy", "kl_to_teacher", "top1_agreement"} <= set(measured)
    assert report["references"]["full"]["kl_to_teacher"]["value"] == pytest.approx(0, abs=1e-3)
    ranked = [one for one in report["candidates"] if one["cross_entropy"] is not None]
    best = min(ranked, key=lambda one: one["cross_entropy"])
    assert len(ranked) == 2
    assert best["chosen"]
    files = language.files(running, job.model)
    card = json.loads(files.card_json)
    assert card["cut"]["shape"]["parameters"] == got["parameters"]
    assert not files.base
    assert language.generate(running, job.model, "red") is not None


@pytest.mark.slow
def test_a_large_cut_is_made_in_rounds(running: Suite) -> None:
    asked = prune(non_embedding_share=0.3, rounds=2, controls=True, model_id="hopped")
    job = running.finish(running.create(asked), timeout_s=300)
    report: dict[str, Any] = running.read_json(job.report.digest)
    first, last = report["rounds"]
    assert first["non_embedding_share"] > last["non_embedding_share"]
    assert last["non_embedding_share"] == report["size"]["got"]["non_embedding_share"] <= 0.3
    assert [one["steps"] for one in (first, last)] == [2, 2]
    arms = {arm["arm"]: arm for arm in report["arms"]}
    assert set(arms) > {"prune", "one_round"}
    assert {arm["steps"] for arm in arms.values()} == {4}
    tokens = [arm["trained_tokens"] for arm in arms.values()]
    assert max(tokens) < 1.1 * min(tokens)
    assert "hopped" in model_names(running)
    assert all(len(name) < 64 for name in model_names(running))  # rounds leave no named model
    assert language.generate(running, job.model, "red") is not None


def test_a_corrected_teacher_teaches(running: Suite) -> None:
    job = running.finish(
        running.create(
            prune(
                non_embedding_share=0.6, axes="PRUNE_AXES_WIDTH", correct_teacher=True, model_id="c"
            )
        ),
        timeout_s=300,
    )
    report: dict[str, Any] = running.read_json(job.report.digest)
    losses = {k: v["cross_entropy"]["value"] for k, v in report["references"].items()}
    assert losses["full"] < losses["uncorrected"]
    assert report["references"]["full"]["kl_to_teacher"]["value"] == pytest.approx(0, abs=1e-3)
    card = json.loads(language.files(running, job.model).card_json)
    assert card["student"] == "c-teacher"


def test_an_impossible_size_fails_before_any_target(running: Suite) -> None:
    models = model_names(running)
    name = running.create(prune(max_parameters=100))
    with pytest.raises(AssertionError, match="the least possible is"):
        running.finish(name, timeout_s=120)
    assert "targets" not in [stage.stage for stage in running.job(name).stages]
    name = running.create(prune(max_latency_ms=1e-4))
    with pytest.raises(AssertionError, match="0.0001 ms is asked for; the least possible"):
        running.finish(name, timeout_s=120)
    assert "targets" not in [stage.stage for stage in running.job(name).stages]
    with pytest.raises(grpc.RpcError, match="nothing is to be cut"):
        running.create(prune(max_bytes=1 << 30))
    assert model_names(running) == models
