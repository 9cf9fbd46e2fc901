"""The prune demo's story and summary, on a gateway of fixed answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import demo_suite
from stillhouse_client.prune_demo import PruneDemo, PrunePlan, build, summary

from tests.client.fake_gateway import World

P = "projects/default"


async def test_the_story_ends_in_the_figures_that_were_promised(
    gateway: World, tmp_path: Path
) -> None:
    gateway.job_kind = "prune"
    plan, told = PrunePlan(share=0.5, axes="depth"), []
    async with AsyncClient(gateway.address) as client:
        story = await PruneDemo(client, plan, say=told.append, show=lambda job: None).run()
        found = await build(client, story, plan, 1.0)
    assert told[1] == "prune: smollm2-135m to 50% by depth alone, retrained, beside its controls"
    created = gateway.last(datasets_pb2.CreateDatasetRequest)
    assert (created.uri, created.max_items) == ("builtin:sotu-text-texts", 100)
    spec = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.prune
    assert (spec.dataset, spec.model_id) == (f"{P}/datasets/cut-texts-100", "cut-50-depth-50-2")
    assert (spec.non_embedding_share, spec.axes) == (0.5, jobs_pb2.PRUNE_AXES_DEPTH)
    assert (spec.controls, spec.training_seeds, spec.training.max_steps) == (True, 2, 50)
    files = demo_suite.write(found, tmp_path, "prune", "A title")
    assert files[0].name == "prune.json"
    written = json.loads(files[0].read_text())
    assert written["ce"]["pruned_kd"] == pytest.approx({"value": 2.8, "low": 2.75, "high": 2.85})
    assert written["ce"]["pruned_ce"]["value"] == pytest.approx(3.4)
    assert set(written["ce"]["full"]) == {"value", "low", "high"}


def test_a_summary_names_every_arm_and_what_controls_lack() -> None:
    losses = {"prune": 3.0, "no_distillation": 3.2, "random_cut": 4.0, "random_weights": 7.0}
    report = {
        "arms": [{"arm": a, "metrics": {"cross_entropy": {"value": v}}} for a, v in losses.items()],
        "references": {"full": {"cross_entropy": {"value": 2.5}}},
        "paired": {"random_cut": {"cross_entropy": {"value": -1.0}}, "random_weights": {}},
        "size": {},
        "cut": {"kind": "width", "shape": {}},
    }
    found = summary(report)
    assert {name: one["value"] for name, one in found["ce"].items()} == {
        "full": 2.5,
        "pruned_kd": 3.0,
        "pruned_ce": 3.2,
        "random_pruned_kd": 4.0,
        "scratch": 7.0,
    }
    assert found["paired"] == {"random_pruned_kd": {"value": -1.0}}


def test_plans_of_other_shares_have_other_models_and_the_same_texts() -> None:
    one, other = PrunePlan(), PrunePlan(share=0.5)
    assert one.dataset == other.dataset
    assert one.model != other.model
    assert one.request_id("prune") != other.request_id("prune")
