"""The figures of a tuneshift report under the names that tuneshift.json promises."""

from __future__ import annotations

from typing import Any

import pytest
from stillhouse_client.tuneshift_demo import TuneShiftPlan
from stillhouse_client.tuneshift_summary import recovered, summary


def _figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def _report() -> dict[str, Any]:
    def arm(name: str, right: float, entropy: float) -> dict[str, Any]:
        metrics = {"questions/choice_accuracy": right, "texts/cross_entropy": entropy}
        return {"arm": name, "metrics": {k: _figure(v) for k, v in metrics.items()}}

    return {
        "arms": [arm("tuneshift", 0.8, 4.2), arm("random_filter", 0.6, 4.1)],
        "before": {
            "questions/choice_accuracy": _figure(0.4),
            "texts/cross_entropy": _figure(4.0),
        },
        "references": {
            "base": {"questions/choice_accuracy": _figure(0.5)},
            "tuned": {"questions/choice_accuracy": _figure(0.9)},
        },
        "rounds": [{"prompts": 100, "kept": 40}, {"prompts": 0, "kept": 0}],
        "paired_random": {"questions/choice_accuracy": _figure(0.2)},
        "fact_coverage": {"value": 0.9},
    }


def test_every_promised_figure_is_found() -> None:
    found = summary(_report())
    assert {name: round(f["value"], 6) for name, f in found["accuracy"].items()} == {
        "base": 0.5,
        "tuned": 0.9,
        "target_before": 0.4,
        "tuneshift": 0.8,
        "random_filter": 0.6,
    }
    assert found["keep_rate"] == [0.4, 0.0]
    assert found["paired_random"]["value"] == 0.2
    assert found["general_ce"]["rise"] == pytest.approx(0.05)
    assert found["fact_coverage"] == {"value": 0.9}


def test_the_recovered_share_is_of_the_tuned_models_advantage() -> None:
    assert summary(_report())["recovered"] == pytest.approx(0.75)
    assert recovered({"base": _figure(0.9), "tuned": _figure(0.9), "tuneshift": _figure(1)}) is None
    assert recovered({"base": _figure(0.9)}) is None


def test_equal_plans_give_equal_request_ids_and_others_do_not() -> None:
    assert TuneShiftPlan().request_id("tuned") == TuneShiftPlan().request_id("tuned")
    assert TuneShiftPlan().request_id("tuned") != TuneShiftPlan.quick().request_id("tuned")
    assert TuneShiftPlan(tag="a").name("facts") == "shift-facts-100-a"
