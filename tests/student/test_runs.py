"""Training runs in real processes: attach, stop, kill -9 of worker and service, fencing."""

from __future__ import annotations

import os
import signal

import grpc
import pytest
from google.rpc import code_pb2
from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput, Precondition
from services.student.rundir import Fenced, RunDir
from tests.student import suite

LONG = {"control_draws": 12}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data in its blob store."""
    return tmp_path_factory.mktemp("student")


@pytest.fixture(scope="module")
def running(home):
    with suite.service(home) as service:
        yield service


@pytest.fixture(scope="module")
def data(running):
    return suite.make_data(running.blobs)


@pytest.fixture(scope="module")
def reference(running, data):
    """The student of an undisturbed run."""
    return running.student(suite.concept_request(data, "reference", **LONG))


def until(stream, stage: str) -> student_pb2.TrainResponse:
    """Read events up to one whose stage holds `stage`."""
    for event in stream:
        assert event.WhichOneof("event") == "progress", event
        if stage in event.progress.stage:
            return event
    raise AssertionError(f"the run ended before {stage!r}")


def test_events_are_numbered_and_end_in_the_result(running, data, reference):
    events = running.train(suite.concept_request(data, "reference", **LONG))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert {event.WhichOneof("event") for event in events[:-1]} == {"progress"}
    assert events[-1].result.concept.student == reference


def test_attach_skips_what_was_seen_and_always_gives_the_last(running, data, reference):
    request = suite.concept_request(data, "reference", **LONG)
    everything = running.train(request)
    request.after_sequence = 3
    assert running.train(request) == everything[3:]
    request.after_sequence = len(everything) + 5
    assert running.train(request) == everything[-1:]


def test_another_recipe_under_the_same_id_is_refused(running, data, reference):
    with pytest.raises(grpc.RpcError) as caught:
        running.train(suite.concept_request(data, "reference", seed=1, **LONG))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_two_callers_share_one_worker(running, data):
    request = suite.concept_request(data, "shared", **LONG)
    first, second = running.stub.Train(request), running.stub.Train(request)
    next(first), next(second)
    assert len(running.workers()) == 1
    first.cancel()  # leaving does not stop the run
    assert list(second)[-1].HasField("result")


def test_killed_worker_is_restarted_and_gives_the_same_student(running, data, reference):
    stream = running.stub.Train(suite.concept_request(data, "worker-killed", **LONG))
    until(stream, "random directions")
    (worker,) = running.workers()
    os.kill(worker, signal.SIGKILL)
    events = list(stream)
    assert [e.progress.stage for e in events].count("starting") == 1
    assert events[-1].result.concept.student == reference


def test_killed_fork_server_takes_its_worker_along_and_is_replaced(running, data, reference):
    stream = running.stub.Train(suite.concept_request(data, "server-killed", **LONG))
    until(stream, "random directions")
    (worker,) = running.workers()
    os.kill(suite.parent(worker), signal.SIGKILL)
    assert list(stream)[-1].result.concept.student == reference
    assert not suite.alive(worker)


def test_worker_killed_twice_is_an_error_that_a_further_call_heals(running, data, reference):
    request = suite.concept_request(data, "killed-twice", **LONG)
    stream = running.stub.Train(request)
    for _ in range(2):
        until(stream, "starting")
        (worker,) = running.workers()
        os.kill(worker, signal.SIGKILL)
    last = list(stream)[-1]
    assert last.error.code == code_pb2.INTERNAL
    assert "SIGKILL" in last.error.message
    assert running.student(request) == reference


def test_stopped_run_says_so_and_resumes(running, data, reference):
    request = suite.concept_request(data, "stopped", **LONG)
    stream = running.stub.Train(request)
    until(stream, "random directions")
    (worker,) = running.workers()
    stop = student_pb2.StopTrainingRequest(project=suite.PROJECT, run_id="stopped")
    assert running.stub.StopTraining(stop).stopped
    assert list(stream)[-1].error.code == code_pb2.CANCELLED
    assert not suite.alive(worker)
    assert not running.stub.StopTraining(stop).stopped
    assert running.student(request) == reference


@pytest.mark.faults
def test_killed_service_takes_its_worker_along_and_resumes(home, data, reference):
    request = suite.concept_request(data, "service-killed", **LONG)
    with suite.service(home) as service:
        stream = service.stub.Train(request)
        until(stream, "random directions")
        (worker,) = service.workers()
        service.kill()
        suite.wait_until(lambda: not suite.alive(worker))
    with suite.service(home) as service:
        events = service.train(request)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].result.concept.student == reference
    assert [e.progress.stage for e in events].count("starting") == 2


def test_runs_wait_for_a_slot_and_too_many_are_refused(home, data):
    with suite.service(home, max_runs="1", max_waiting_runs="1") as service:
        streams = []
        for k, stage in enumerate(("starting", "waiting for a free slot")):
            request = suite.concept_request(data, f"queued-{k}", **LONG)
            streams.append(service.stub.Train(request))
            until(streams[k], stage)
        with pytest.raises(grpc.RpcError) as caught:
            service.train(suite.concept_request(data, "queued-2", **LONG))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        stop = student_pb2.StopTrainingRequest(project=suite.PROJECT, run_id="queued-1")
        assert service.stub.StopTraining(stop).stopped
        assert list(streams[1])[-1].error.code == code_pb2.CANCELLED
        assert list(streams[0])[-1].HasField("result")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"project": "Not A Project"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"run_id": "../../etc"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"run_id": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"after_sequence": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"concept": None}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_malformed_requests_start_nothing(running, data, change, code):
    request = suite.concept_request(data, "malformed")
    for name, value in change.items():
        if value is None:
            request.ClearField(name)
        else:
            setattr(request, name, value)
    with pytest.raises(grpc.RpcError) as caught:
        running.train(request)
    assert caught.value.code() == code
    assert not (running.runs / suite.PROJECT / "malformed").exists()


def test_missing_data_is_reported_as_the_last_event(running, data):
    request = suite.concept_request(data, "no-shard")
    request.concept.data.teacher_shards[0].digest = "0" * 64
    assert running.train(request)[-1].error.code == code_pb2.NOT_FOUND


def test_damaged_shard_is_reported_as_the_last_event(running, data):
    request = suite.concept_request(data, "damaged")
    broken = running.blobs.put(suite.PROJECT, b"\xff" * 100)
    request.concept.data.region_shards[1].digest = broken
    assert running.train(request)[-1].error.code == code_pb2.INVALID_ARGUMENT


def test_old_epoch_cannot_write(tmp_path):
    run = RunDir.of(tmp_path, "default", "a")
    run.create(student_pb2.TrainRequest(project="default", run_id="a"))
    old = run.next_writer()
    old.progress("one", 0, 1)
    new = run.next_writer()
    for write in (
        lambda: old.progress("late", 1, 1),
        lambda: old.save("phase", {}),
        lambda: old.finish(student_pb2.TrainResult()),
    ):
        with pytest.raises(Fenced):
            write()
    new.progress("two", 1, 1)
    assert [event.progress.stage for event in run.events()[0]] == ["one", "two"]


def test_half_written_event_is_cut_off(tmp_path):
    run = RunDir.of(tmp_path, "default", "a")
    run.create(student_pb2.TrainRequest(project="default", run_id="a"))
    run.next_writer().progress("one", 0, 1)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"sequence": 2, "sta')
    assert len(run.events()[0]) == 1
    run.next_writer().progress("two", 1, 1)
    assert [event.sequence for event in run.events()[0]] == [1, 2]


def test_damaged_checkpoint_counts_as_none(tmp_path):
    run = RunDir.of(tmp_path, "default", "a")
    run.create(student_pb2.TrainRequest(project="default", run_id="a"))
    writer = run.next_writer()
    writer.save("phase", {})
    assert writer.load("phase") == {}
    (run.path / "checkpoint" / "phase.safetensors").write_bytes(b"half")
    assert writer.load("phase") is None


def test_run_ids_cannot_leave_the_folder(tmp_path):
    for name in ("..", ".", "a/b", "a\n", "", "x" * 129):
        with pytest.raises(InvalidInput):
            RunDir.of(tmp_path, "default", name)


def test_differing_fields_are_named(tmp_path):
    run = RunDir.of(tmp_path, "default", "a")
    recipe = student_pb2.TrainRequest(project="default", run_id="a")
    recipe.concept.nec = 30
    run.create(recipe)
    run.create(recipe)
    other = student_pb2.TrainRequest.FromString(recipe.SerializeToString())
    other.concept.nec = 10
    with pytest.raises(Precondition) as caught:
        run.create(other)
    assert caught.value.differences == {"concept.nec": "differs"}
