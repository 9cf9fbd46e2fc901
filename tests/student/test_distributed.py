"""One run on several processes: the same curves, and killed it goes on, on any number of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from concurrent import futures
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stillhouse.common.v1 import language_pb2
from stillhouse.student.v1 import student_pb2
from stillhouse.teacher.v1 import teacher_pb2_grpc
from torch import nn

from services.common.blobs import BlobStore
from services.common.errors import Precondition
from services.student import sharding
from services.student.ranks import Ranks, join
from services.student.runs import RunManager
from services.student.settings import StudentSettings
from services.student.sharding import Shared
from services.student.slices import Slices, write
from tests.student import classifier_suite, language_suite, suite
from tests.student.test_language_on_policy import TEACHER, Teacher

STEPS = 20
CLOSE = 1e-3


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


def services_of(home, processes: int, **settings: str):
    catalogue = home / "catalogue.toml"
    if not catalogue.exists():
        language_suite.make_catalogue(home)
    return suite.service(
        home,
        threads="2",
        processes=str(processes),
        catalogue=str(catalogue),
        cache_dir=str(home / "cache"),
        **settings,
    )


@pytest.fixture(scope="module")
def alone(home):
    with services_of(home, 1) as running:
        yield running


@pytest.fixture(scope="module")
def pair(home):
    with services_of(home, 2) as running:
        yield running


def language(blobs, run_id: str, **options) -> student_pb2.TrainRequest:
    """Stored targets, replay of another length, an evaluation now and then."""
    sequences = language_suite.sequences_of(language_suite.texts())
    held = language_suite.put_records(blobs, language_suite.texts(4, split="test"))
    return language_suite.request(
        run_id,
        target_shards=[language_suite.put_targets(blobs, sequences, "sampled")],
        replay_shards=[language_suite.put_records(blobs, language_suite.answers())],
        evaluation=student_pb2.LanguageEvaluation(text_shards=[held]),
        training=language_suite.training(
            **{"max_steps": STEPS, "checkpoint_steps": 5, "batch_sequences": 5, **options}
        ),
    )


def adapter(blobs, run_id: str) -> student_pb2.TrainRequest:
    return language(blobs, run_id, lora=language_pb2.Lora(rank=4), patience=100)


def states(blobs, run_id: str) -> student_pb2.TrainRequest:
    """A narrower cut that learns from the whole model's states, too, by a projection."""
    asked = language(blobs, run_id, intermediate_states=2, learning_rate=3e-3)
    shape = student_pb2.PrunedShape(layers=2, hidden_size=16)
    asked.language.cut.CopyFrom(student_pb2.PruneCut(shape=shape, random=True, seed=1))
    return asked


def classifier(blobs, run_id: str, **options) -> student_pb2.TrainRequest:
    """Nine images a step, so that shares differ; its network has batch norms."""
    data = classifier_suite.make_data(blobs)
    wanted = {"max_steps": STEPS, "checkpoint_steps": 5, "batch_images": 9, **options}
    training = classifier_suite.training(**wanted)
    return classifier_suite.request(data, run_id, training=training)


def losses(events) -> dict[int, float]:
    """Loss after each step of the last worker that told any."""
    assert events[-1].HasField("result"), events[-1].error.message
    told = [event.progress for event in events if event.progress.stage == "training"]
    return {one.done: one.metrics["loss"] for one in told if one.metrics}


@dataclass
class Supervised:
    """Runs of this process, whose workers come from one fork server."""

    settings: StudentSettings

    @property
    def blobs(self) -> BlobStore:
        return BlobStore(self.settings.blob_url)

    def train(self, asked: student_pb2.TrainRequest) -> list[student_pb2.TrainResponse]:
        async def events():
            manager = RunManager(self.settings)
            found = [event async for event in manager.train(asked, 0)]
            await manager.close()
            return found

        return asyncio.run(events())


@pytest.fixture(scope="module")
def supervised(home):
    """Makes a supervisor of runs of so many processes."""
    if not (home / "catalogue.toml").exists():
        language_suite.make_catalogue(home)

    def make(processes: int) -> Supervised:
        settings = StudentSettings(
            runs_dir=home / "supervised",
            blob_url=str(home / "blobs"),
            cache_dir=home / "cache",
            catalogue=home / "catalogue.toml",
            processes=processes,
            threads=2,
        )
        return Supervised(settings)

    return make


@pytest.mark.parametrize("make", [language, classifier])
def test_two_processes_give_the_curve_of_one(supervised, make):
    same_curves(supervised(1), supervised(2), make)


@pytest.mark.slow
@pytest.mark.parametrize("make", [adapter, states])
def test_so_do_adapters_and_intermediate_states(supervised, make):
    same_curves(supervised(1), supervised(2), make)


def test_a_loss_that_is_no_number_ends_all_processes_and_says_so(supervised):
    pair = supervised(2)
    asked = language(pair.blobs, "nan")
    asked.language.student = language_suite.BROKEN
    last = pair.train(asked)[-1]
    assert suite.status_code(last.error) == grpc.StatusCode.FAILED_PRECONDITION


def test_fewer_images_a_step_than_processes_are_refused(supervised):
    three = supervised(3)
    last = three.train(classifier(three.blobs, "few", batch_images=2))[-1]
    assert suite.status_code(last.error) == grpc.StatusCode.FAILED_PRECONDITION
    assert "use at least 3, or fewer STUDENT_PROCESSES" in last.error.message


def test_a_weight_without_rows_cannot_be_shared():
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(Precondition, match="scale is a scalar"):
        Shared(module, Ranks(0, 2))


def test_the_whole_has_tied_weights_and_every_buffer(monkeypatch):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    module.register_buffer("mask", None)
    module.register_buffer("scale", torch.ones(1))
    monkeypatch.setattr(sharding, "fully_shard", lambda *_, **__: None)
    monkeypatch.setattr(sharding, "init_device_mesh", lambda *_, **__: None)
    whole = Shared(module, Ranks(0, 2)).whole()
    assert whole is not module
    assert whole.mask is None
    assert torch.equal(whole.scale, module.scale)
    assert whole[1].weight is whole[0].weight
    assert torch.equal(whole[0].weight, module[0].weight)
    assert torch.equal(whole[1].bias, module[1].bias)


def same_curves(alone, pair, make) -> None:
    name = make.__name__
    one = alone.train(make(alone.blobs, f"{name}-1"))
    two = pair.train(make(pair.blobs, f"{name}-2"))
    mine, theirs = losses(one), losses(two)
    assert list(mine) == list(theirs) == list(range(1, STEPS + 1))
    assert np.ptp(list(mine.values())) > 10 * CLOSE  # it has learned something
    assert [theirs[step] for step in mine] == pytest.approx(list(mine.values()), abs=CLOSE)
    assert after_of(pair.blobs, two) == pytest.approx(after_of(alone.blobs, one), abs=5 * CLOSE)


def after_of(blobs, events) -> float:
    """What the stored student is worth."""
    kind = events[-1].result.WhichOneof("outcome")
    ref = getattr(events[-1].result, kind).report
    report = json.loads(blobs.get(suite.PROJECT, ref.digest))
    if kind == "language":
        return report["after"]["cross_entropy"]["value"]
    return report["student"]["test"]["negative_log_likelihood"]["value"]


@pytest.mark.slow
def test_ranks_answer_alike_and_ask_the_teacher_for_their_own_share(home):
    servicer = Teacher(away=1)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    curves, asked, adapters = [], [], []
    for processes in (1, 2):
        with services_of(home, processes, teacher_address=address) as running:
            curves.append(losses(running.train(on_policy(running.blobs, f"own-{processes}"))))
            asked.append(sorted(one.digest for one in servicer.asked))
            servicer.asked = []
            lora = on_policy(running.blobs, f"adapter-{processes}")
            lora.language.training.lora.rank = 4
            adapters.append(losses(running.train(lora)))
        servicer.asked = []
    server.stop(None)
    assert asked[0] == asked[1]
    assert len(asked[0]) == 4 * 4
    for one, two in (curves, adapters):
        assert [two[step] for step in one] == pytest.approx(list(one.values()), abs=CLOSE)


def on_policy(blobs, run_id: str) -> student_pb2.TrainRequest:
    records = language_suite.put_records(blobs, language_suite.answers())
    return language_suite.request(
        run_id,
        text_shards=[records],
        training=language_suite.training(max_steps=4, loss=language_pb2.LANGUAGE_LOSS_JSD),
        on_policy=student_pb2.OnPolicy(
            teacher=TEACHER, top_k=8, sampling=language_pb2.Sampling(max_tokens=6)
        ),
        discard_model=True,
    )


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("make", [language, classifier])
@pytest.mark.parametrize(
    ("before", "after"), [("pair", "pair"), ("pair", "alone"), ("alone", "pair")]
)
def test_killed_it_goes_on_with_as_many_processes_as_there_are(request, before, after, make):
    first, second = (request.getfixturevalue(name) for name in (before, after))
    name = f"{make.__name__}-{before}-{after}"
    options = {"max_steps": 4 * STEPS}
    whole = first.train(make(first.blobs, f"{name}-whole", **options))
    asked = make(first.blobs, name, **options)
    if first is second:
        ended = killed(first, asked, 2 * STEPS, times=1)
    else:
        given_up = killed(first, asked, 2 * STEPS, times=2)
        assert "killed by SIGKILL, 2 times" in given_up[-1].error.message
        ended = second.train(asked)
    told, undisturbed = losses(ended), losses(whole)
    assert max(told) == 4 * STEPS
    assert resumed_at(ended) >= STEPS // 2
    assert [told[step] for step in told] == pytest.approx(
        [undisturbed[step] for step in told], abs=CLOSE
    )
    if first is second:
        assert digest(ended) == digest(whole)


def killed(running, asked, step: int, *, times: int) -> list[student_pb2.TrainResponse]:
    """Kill a run's last process once it has told of a step, and again as soon as it is back;
    returns the events from there on."""
    stream = running.stub.Train(asked, timeout=240)
    for event in stream:
        if event.progress.stage == "training" and event.progress.done >= step:
            break
    for _ in range(times):
        suite.wait_until(lambda: living(running))
        workers = living(running)
        os.kill(max(workers), signal.SIGKILL)
        suite.wait_until(lambda gone=workers: not any(map(suite.alive, gone)))
    return list(stream)


def living(running) -> list[int]:
    return [pid for pid in running.workers() if suite.alive(pid)]


def resumed_at(events) -> int:
    """First step that the last worker told of."""
    stages = [event.progress.stage for event in events]
    last = len(stages) - 1 - stages[::-1].index("starting")
    return next(e.progress.done for e in events[last:] if e.progress.metrics)


def digest(events) -> str:
    result = getattr(events[-1].result, events[-1].result.WhichOneof("outcome"))
    return getattr(result, "weights_digest", "") or result.weights.digest


def test_more_processes_than_gpus_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Precondition, match="STUDENT_PROCESSES is 2 on cuda, and there are 1 GPUs"):
        join(0, 2, tmp_path / "meeting", "cuda")


def test_shares_are_dealt_in_turn_and_nobody_has_to_wait():
    items = list("abcde")
    assert [Ranks(rank, 2).share(items) for rank in (0, 1)] == [
        (["a", "c", "e"], True),
        (["b", "d"], True),
    ]
    assert Ranks(2, 3).share(["a", "b"]) == (["a"], False)


def test_slices_of_ranks_are_one_tensor_again(tmp_path):
    whole = torch.arange(10.0).reshape(5, 2)
    write(tmp_path, "one", {"w": whole, "step": torch.tensor(3.0)}, Ranks())
    for rank, rows in enumerate((whole[:3], whole[3:], whole[5:])):  # the last has none
        ending = f"{rank:04d}-of-0003"
        extra = {"step": torch.tensor(3.0)} if rank == 0 else {}
        save_file({"w": rows.contiguous()} | extra, tmp_path / f"three.{ending}.safetensors")
    for stem in ("one", "three"):
        with Slices(tmp_path, stem) as slices:
            assert slices.names() == ["step", "w"]
            assert torch.equal(slices.whole("w"), whole)
            assert float(slices.whole("step")) == 3
            for start, stop in ((0, 5), (0, 2), (2, 4), (3, 5), (5, 5)):
                assert torch.equal(slices.between("w", start, stop), whole[start:stop])
            with pytest.raises(KeyError):
                slices.whole("nobody")
    with Slices(tmp_path, "nothing") as slices:
        assert not slices.exist
