"""The demo's choices: names found again, a sensible edit, a report in the published shape."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from stillhouse.gateway.v1 import students_pb2
from stillhouse_client import sentences
from stillhouse_client.commands.demo import workbench
from stillhouse_client.demo import FACTOR, Plan, choose_edit
from stillhouse_client.demo_report import both_ways
from stillhouse_client.errors import Mismatch
from stillhouse_client.report import gallery
from stillhouse_client.suite import state
from stillhouse_client.suite.config import SuiteConfig

from tests.client.fake_gateway import changes


def entry(label: str, **concepts: tuple[float, float]) -> students_pb2.ClassConcepts:
    """Return a class with concepts of (weight, influence)."""
    weights = [
        students_pb2.ConceptWeight(concept=word, weight=weight, influence=influence)
        for word, (weight, influence) in concepts.items()
    ]
    return students_pb2.ClassConcepts(label=label, concepts=weights)


def test_equal_plans_find_each_others_work() -> None:
    plan = Plan(60)
    assert plan.name("fine") == "fruit-fine-60"
    assert plan.request_id("teacher", "fine") == Plan(60).request_id("teacher", "fine")
    ids = {
        plan.request_id("teacher", "fine"),
        plan.request_id("teacher", "coarse"),
        Plan(0).request_id("teacher", "fine"),
        Plan(60, "r1").request_id("teacher", "fine"),
    }
    assert len(ids) == 4
    assert all(uuid.UUID(value) for value in ids)


def test_the_edit_raises_the_strongest_support_of_the_weakest_class() -> None:
    classes = [
        entry("Apple", red=(0.5, 0.9)),
        entry("Pear", green=(-0.4, 2.0), stalk=(0.2, 0.1), bell=(0.3, 0.4)),
        entry("Plum", red=(-0.5, 0.9)),
    ]
    edit = choose_edit(classes, {"Apple": 0.9, "Pear": 0.4, "Plum": 0.1})
    assert (edit.label, edit.concept, edit.factor) == ("Pear", "bell", FACTOR)
    with pytest.raises(Mismatch):
        choose_edit([entry("Plum", red=(-0.5, 0.9))], {})


def test_shown_concepts_are_in_the_photos_or_missing_from_them() -> None:
    found = entry("Apple", red=(0.5, 0.9), absent=(0.9, -1.0), green=(-0.4, 0.3), odd=(-0.1, -2.0))
    assert [c.concept for c in gallery.chosen(found.concepts)] == ["red", "green"]


@pytest.mark.parametrize("nested", [False, True])
def test_the_report_has_low_nec_figures_in_both_places(nested: bool) -> None:
    high, low = {"fidelity": {"value": 0.8}}, {"fidelity": {"value": 0.7}}
    paired = {"fidelity": {"value": 0.1, "low": 0.0, "high": 0.2}}
    report: dict[str, Any] = {"student": high, "paired_random": paired, "n_test": 5}
    if nested:
        report["student"] = {**high, "at_nec_10": low}
        report["paired_random"] = {**paired, "at_nec_10": paired}
    else:
        report["at_nec_10"] = {"student": low, "paired_random": paired}
    made = both_ways(report)
    assert made["at_nec_10"]["student"]["fidelity"] == {"value": 0.7}
    assert made["student"]["at_nec_10"]["fidelity"] == {"value": 0.7}
    assert made["student"]["fidelity"] == {"value": 0.8}
    for part in (made["paired_random"], made["at_nec_10"]["paired_random"]):
        assert (part["value"], part["low"], part["high"]) == (0.1, 0.0, 0.2)
    assert made["n_test"] == 5


def test_a_sentence_keeps_to_the_edited_class_and_the_overall() -> None:
    effect = students_pb2.StudentVersion().effects.add()
    effect.edit.label, effect.edit.concept = "Pink-Lady", "red skin"
    text = sentences.tuning([effect], changes())
    assert "recall of Pink-Lady" in text
    assert "fidelity" in text
    assert "Apple" not in text


def test_the_demo_ends_with_the_workbenchs_address(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    ended = workbench(SuiteConfig(folder, 0), "default", Plan())
    assert ended["url"] == "http://127.0.0.1:7180/#/p/default/s/fruit-fine/performance"
    assert ended["command"] == f"stillhouse up --data-dir '{folder}'"
    other = workbench(SuiteConfig(folder, 7300), "default", Plan())
    assert other["url"].startswith("http://127.0.0.1:7380/")
    assert other["command"].endswith(" --port 7300")

    lock = state.Lock(folder)
    assert lock.acquire()
    state.write(folder, state.State(1, "127.0.0.1:5", web="http://127.0.0.1:6/"))
    running = workbench(SuiteConfig(folder, 0), "default", Plan())
    assert (running["url"][:19], running["command"]) == ("http://127.0.0.1:6/", "")
    lock.release()
