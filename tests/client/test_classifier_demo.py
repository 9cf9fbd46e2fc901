"""The classifier demo's story and summary, on a gateway of fixed answers."""

from __future__ import annotations

import json
from pathlib import Path

from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2
from stillhouse_client.classifier_demo import ClassifierDemo, ClassifierPlan, build
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import demo_suite

from tests.client.fake_gateway import World

P = "projects/default"


async def test_the_story_ends_in_the_figures_that_were_promised(
    gateway: World, tmp_path: Path
) -> None:
    gateway.job_kind = "classifier"
    plan, told = ClassifierPlan.quick(), []
    async with AsyncClient(gateway.address) as client:
        demo = ClassifierDemo(client, plan, say=told.append, show=lambda job: None)
        summary = await build(client, await demo.run(), plan, 1.0)
    assert len(told) == 3
    created = gateway.last(datasets_pb2.CreateDatasetRequest)
    assert (created.uri, created.max_items) == ("builtin:cifar10", 1000)
    jobs = [c.job for c in gateway.calls if isinstance(c, jobs_pb2.CreateDistillationJobRequest)]
    assert [job.WhichOneof("spec") for job in jobs] == ["teacher_head", "classifier"]
    spec = jobs[1].classifier
    assert (spec.dataset, spec.controls, spec.training_seeds) == (
        f"{P}/datasets/cifar-1000",
        True,
        1,
    )
    files = demo_suite.write(summary, tmp_path, "classifier", "A title")
    assert files[0].name == "classifier.json"
    found = json.loads(files[0].read_text())
    assert {who: one["value"] for who, one in found["accuracy"].items()} == {
        "teacher": 0.9,
        "soft_hard": 0.8,
        "alone": 0.7,
        "soft": 0.75,
    }
    assert found["paired_alone"] == {"value": 0.1, "low": 0.02, "high": 0.18}


def test_equal_plans_give_equal_request_ids_and_others_do_not() -> None:
    assert ClassifierPlan().request_id("teacher") == ClassifierPlan().request_id("teacher")
    assert ClassifierPlan().request_id("teacher") != ClassifierPlan.quick().request_id("teacher")
