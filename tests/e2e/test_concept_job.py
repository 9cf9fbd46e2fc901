"""The concept job through four processes, on real weights and photos; what must not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    students_pb2,
    students_pb2_grpc,
)
from stillhouse.student.v1 import student_pb2

from services.common.images import decode
from services.common.tensors import from_message
from services.torch_common.preprocess import Preprocessing
from tests.e2e.suite import PROJECT, Suite, suite
from tests.support import hostile_batch, photo

pytestmark = pytest.mark.e2e
FRUIT = f"{PROJECT}/students/fruit"


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Suite, jobs_pb2.DistillationJob]]:
    with suite(tmp_path_factory.mktemp("first")) as running:
        yield running, running.finish(running.create(running.prepare()))


Ran = tuple[Suite, jobs_pb2.DistillationJob]


def test_the_report_has_the_student_beside_its_controls(ran: Ran) -> None:
    running, job = ran
    report = running.read_json(job.report.digest)
    assert report["n_train"]
    assert report["n_test"]
    for part in (report, report["at_nec_10"]):
        assert isinstance(part, dict)
        for kind in ("student", "random_control", "random_words", "sparse_probe"):
            for metric in ("fidelity", "accuracy", "nec"):
                estimate = part[kind][metric]
                assert estimate["low"] <= estimate["value"] <= estimate["high"], (kind, metric)
        assert {"value", "low", "high"} <= set(part["paired_random"]["fidelity"])
    assert report["student"]["nec"]["value"] <= 30  # type: ignore[index]
    assert report["at_nec_10"]["student"]["nec"]["value"] <= 10  # type: ignore[index]


def test_the_same_job_again_comes_from_the_cache(ran: Ran) -> None:
    running, job = ran
    again = running.finish(running.create(running.concept_job()))
    assert running.weights_digest(again) == running.weights_digest(job)
    stages = {stage.stage: stage for stage in again.stages}
    assert stages["regions"].cache_hits == stages["regions"].total > 0
    assert stages["teacher_outputs"].cache_hits == stages["teacher_outputs"].total > 0


@pytest.mark.slow
def test_an_empty_data_directory_and_a_crowd_give_the_same_bytes(ran: Ran, tmp_path: Path) -> None:
    running, job = ran
    with suite(tmp_path / "second") as second, second.hammered() as errors:
        other = second.finish(second.create(second.prepare()))
        assert second.weights_digest(other) == running.weights_digest(job)
    assert not errors


@pytest.mark.slow
def test_losing_redis_in_the_middle_costs_time_only(ran: Ran, tmp_path: Path) -> None:
    running, job = ran
    with suite(tmp_path / "third") as third:
        name = third.create(third.prepare())
        third.wait_stage(name, "regions")
        assert third.redis_process is not None
        third.redis_process.kill()
        third.redis_process.wait()
        assert third.weights_digest(third.finish(name)) == running.weights_digest(job)


def test_a_request_id_makes_creating_safe_to_repeat(ran: Ran) -> None:
    running, _ = ran
    request_id = "6a2f4c9e-1111-4222-8333-444455556666"
    with running.channel() as channel:
        stub = jobs_pb2_grpc.DistillationServiceStub(channel)
        request = jobs_pb2.CreateDistillationJobRequest(
            project="default", job=running.concept_job(), request_id=request_id
        )
        first = stub.CreateDistillationJob(request, timeout=30).job.name
        assert stub.CreateDistillationJob(request, timeout=30).job.name == first
        request.job.concept.seed = 7
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateDistillationJob(request, timeout=30)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    running.finish(first)


def test_watching_resumes_where_it_stopped(ran: Ran) -> None:
    running, job = ran
    with running.channel() as channel:
        stub = jobs_pb2_grpc.DistillationServiceStub(channel)
        events = list(
            stub.WatchDistillationJob(
                jobs_pb2.WatchDistillationJobRequest(name=job.name), timeout=30
            )
        )
        assert len(events) > 3
        assert events[-1].job.state == jobs_pb2.JOB_STATE_SUCCEEDED
        middle = events[len(events) // 2]
        rest = list(
            stub.WatchDistillationJob(
                jobs_pb2.WatchDistillationJobRequest(
                    name=job.name, resume_token=middle.resume_token
                ),
                timeout=30,
            )
        )
        tokens = [event.resume_token for event in events]
        assert [event.resume_token for event in rest] == tokens[len(events) // 2 + 1 :]


def test_a_mismatch_is_found_before_any_work(ran: Ran) -> None:
    running, _ = ran
    running.add_dataset("fine", "builtin:fruit-fine", 60)
    spec = jobs_pb2.ConceptJobSpec(
        dataset=f"{PROJECT}/datasets/fine", teacher=f"{PROJECT}/models/fruit-teacher"
    )
    with running.channel() as channel:
        stub = jobs_pb2_grpc.DistillationServiceStub(channel)
        request = jobs_pb2.EstimateDistillationJobRequest(
            project="default", job=jobs_pb2.DistillationJob(concept=spec)
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.EstimateDistillationJob(request, timeout=60)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "does not know" in (caught.value.details() or "")


def test_an_estimate_counts_what_is_cached(ran: Ran) -> None:
    running, _ = ran
    with running.channel() as channel:
        stub = jobs_pb2_grpc.DistillationServiceStub(channel)
        request = jobs_pb2.EstimateDistillationJobRequest(
            project="default", job=running.concept_job()
        )
        reply = stub.EstimateDistillationJob(request, timeout=60)
    assert reply.item_count == reply.cached_item_count == 60
    assert reply.concept_count > 100


def test_tuning_moves_the_weight_in_its_box_and_undo_restores_it(ran: Ran) -> None:
    running, _ = ran
    with running.channel() as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        head = students_pb2.GetStudentVersionRequest(name=f"{FRUIT}/versions/head")
        before = stub.GetStudentVersion(head, timeout=60).version
        for turn, (direction, factor) in enumerate([(1, 2.0), (2, 1.5), (1, 3.0)]):
            label = before.class_concepts[turn].label
            concept = before.class_concepts[turn].concepts[0].concept
            edit = student_pb2.ConceptEdit(
                label=label, concept=concept, direction=direction, factor=factor
            )
            reply = stub.TuneStudent(
                students_pb2.TuneStudentRequest(student=FRUIT, edits=[edit]), timeout=120
            )
            (effect,) = reply.version.effects
            assert effect.box_low <= effect.weight_after <= effect.box_high
            assert effect.weight_after != effect.weight_before
            assert {"fidelity", "accuracy"} <= {change.metric for change in reply.version.changes}
            for change in reply.version.changes:
                assert change.change.low <= change.change.value <= change.change.high
                assert change.HasField("random_change")
        for _ in range(3):
            undone = stub.UndoTuning(students_pb2.UndoTuningRequest(student=FRUIT), timeout=60)
        assert undone.version.student_ref == before.student_ref
        log = stub.ListStudentEvents(
            students_pb2.ListStudentEventsRequest(student=FRUIT), timeout=60
        )
        kinds = [event.kind for event in log.events]
        assert kinds.count("tuned") == kinds.count("undone") == 3
        assert any("students tune" in event.description for event in log.events)


def test_every_item_of_a_hostile_batch_gets_its_own_answer(ran: Ran) -> None:
    running, _ = ran
    batch = hostile_batch()
    items = [items_pb2.ImageInput(item_id=name, data=data) for name, (data, _) in batch.items()]
    with running.channel() as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        request = students_pb2.PredictImagesRequest(student=FRUIT, items=items)
        reply = stub.PredictImages(request, timeout=120)
    outcomes = {one.item_id: one.WhichOneof("outcome") for one in reply.results}
    assert outcomes == {n: "prediction" if usable else "error" for n, (_, usable) in batch.items()}


def test_contributions_add_up_to_the_logit(ran: Ran) -> None:
    running, _ = ran
    with running.channel() as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        items = [items_pb2.ImageInput(item_id="a", data=photo(5))]
        reply = stub.ExplainImages(
            students_pb2.ExplainImagesRequest(student=FRUIT, items=items, top=3), timeout=60
        )
    (one,) = reply.results
    explained = one.explanation
    parts = (
        explained.intercept + explained.rest + sum(c.contribution for c in explained.contributions)
    )
    assert parts == pytest.approx(explained.logit, abs=1e-4)
    assert len(explained.contributions) == 3
    assert all(0 <= box.left < box.right <= 1 for box in one.boxes)


def test_the_exported_onnx_answers_like_the_service(ran: Ran) -> None:
    running, _ = ran
    data = photo(9)
    with running.channel() as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        exported = stub.ExportStudent(
            students_pb2.ExportStudentRequest(
                name=f"{FRUIT}/versions/promoted", format=student_pb2.EXPORT_FORMAT_ONNX
            ),
            timeout=120,
        )
        request = students_pb2.PredictImagesRequest(
            student=FRUIT, items=[items_pb2.ImageInput(data=data)]
        )
        served = stub.PredictImages(request, timeout=60).results[0].prediction
    (file,) = [one for one in exported.files if one.file_name.endswith(".onnx")]
    session = onnxruntime.InferenceSession(running.read_blob(file.blob.digest))
    size = session.get_inputs()[0].shape[1]
    pixels = Preprocessing(size_px=size, crop_pct=1.0).pixels(decode(data))
    outputs = [one.name for one in session.get_outputs()]
    answers = session.run(None, {session.get_inputs()[0].name: np.asarray(pixels)[None]})
    logits = dict(zip(outputs, answers, strict=True))["logits"]
    np.testing.assert_allclose(logits.ravel(), from_message(served.logits), atol=3e-2)


def test_the_project_has_one_dataset_of_each_name(ran: Ran) -> None:
    running, _ = ran
    with running.channel() as channel:
        stub = datasets_pb2_grpc.DatasetServiceStub(channel)
        request = datasets_pb2.CreateDatasetRequest(
            project="default", dataset_id="fruit", uri="builtin:fruit-fine"
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateDataset(request, timeout=30)
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
