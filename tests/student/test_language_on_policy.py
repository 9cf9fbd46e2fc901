"""Training on the student's own answers against a small teacher behind the real contract."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent import futures
from dataclasses import replace

import grpc
import pytest
from stillhouse.common.v1 import language_pb2
from stillhouse.student.v1 import student_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.targets import TargetShard
from services.common.tensors import from_message
from services.student.language.on_policy import calls
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from services.torch_common.language.packing import PackedSequence, tokenizer_digest
from tests.student import language_suite as suite
from tests.support import wait_ready

TEACHER = "projects/default/models/big"
OTHER = "projects/default/models/other"


class Teacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Answers SampleTargets from a tiny model; away for the first calls."""

    def __init__(self, away: int) -> None:
        self.model, self.away, self.asked = suite.make_teacher(), away, []

    def GetModel(self, request, context):
        if request.name not in (TEACHER, OTHER):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        digest = tokenizer_digest(suite.make_tokenizer()) if request.name == TEACHER else "0" * 64
        return teacher_pb2.GetModelResponse(
            model=teacher_pb2.Model(
                kind=teacher_pb2.MODEL_KIND_LANGUAGE_MODEL,
                language_model=teacher_pb2.LanguageModelSpec(tokenizer_digest=digest),
            )
        )

    def SampleTargets(self, request, context):
        if self.away:
            self.away -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        asked = request.sequences
        tokens, offsets = from_message(asked.token_ids), from_message(asked.offsets)
        is_target = from_message(asked.is_target)
        some = [
            PackedSequence(tokens[a:b], is_target[a:b])
            for a, b in zip(offsets[:-1], offsets[1:], strict=True)
        ]
        self.asked += some
        kept = [suite.teach(self.model, one, "top_k", size=request.top_k) for one in some]
        data = TargetShard.encode(kept, kind="top_k", temperature=request.temperature)
        return teacher_pb2.SampleTargetsResponse(inline=data)


@pytest.fixture(scope="module")
def teacher():
    servicer = Teacher(away=1)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None)


@pytest.fixture(scope="module")
def around(tmp_path_factory, teacher):
    home = tmp_path_factory.mktemp("on-policy")
    return Surroundings(
        cache_dir=home, catalogue=suite.make_catalogue(home), teacher_address=teacher.address
    )


def run(around, run_id: str, *, steps: int = 4, model: str = TEACHER, **recipe):
    blobs = BlobStore(str(around.cache_dir / "blobs"))
    prompts = [replace(one, answer="") if at % 2 else one for at, one in enumerate(suite.answers())]
    asked = suite.request(
        run_id,
        text_shards=[suite.put_records(blobs, prompts)],
        training=suite.training(max_steps=steps, loss=language_pb2.LANGUAGE_LOSS_JSD),
        on_policy=student_pb2.OnPolicy(
            teacher=model, top_k=8, sampling=language_pb2.Sampling(max_tokens=6)
        ),
        discard_model=True,
        **recipe,
    )
    folder = RunDir.of(around.cache_dir / "runs", suite.PROJECT, run_id)
    folder.create(asked)
    made = Training(asked.project, blobs, folder.next_writer(), lambda: None, around)
    return train(made, asked).language


def test_a_call_asks_for_no_more_than_its_answer_may_hold():
    sequences = suite.sequences_of(suite.answers(), 96)
    lengths = [len(one.tokens) for one in sequences]
    found = calls(sequences, 2 * max(lengths))
    assert [one for some in found for one in some] == sequences
    assert len(found) > 1
    assert all(sum(len(one.tokens) for one in some) <= 2 * max(lengths) for some in found)
    assert [len(some) for some in calls(sequences[:3], 0)] == [1, 1, 1]
    assert [len(some) for some in calls(sequences[:1] * 70, 1 << 20)] == [64, 6]


def test_student_and_data_take_turns_and_the_same_seed_gives_the_same_weights(around, teacher):
    blobs = BlobStore(str(around.cache_dir / "blobs"))
    replay = [suite.put_records(blobs, suite.texts())]
    first = run(around, "one", replay_shards=replay)
    asked, teacher.asked = teacher.asked, []
    assert len(asked) == 12  # 4 steps of 4 sequences, a quarter of them replay
    given = {one.digest for one in suite.sequences_of(suite.answers(), 96)}
    own = [one for one in asked if one.digest not in given]
    assert 6 <= len(own) < 12
    assert all(0 < one.target_count <= 6 for one in own)
    assert run(around, "two", replay_shards=replay).weights_digest == first.weights_digest
    assert [one.digest for one in teacher.asked] == [one.digest for one in asked]


def test_a_teacher_that_cannot_teach_is_refused_before_any_work(around):
    with pytest.raises(Precondition, match="another tokenizer"):
        run(around, "other", model=OTHER)
    with pytest.raises(NotFound):
        run(around, "nobody", model="projects/default/models/nobody")
    with pytest.raises(Precondition, match="STUDENT_TEACHER_ADDRESS"):
        run(replace(around, teacher_address=""), "nowhere")
    with pytest.raises(InvalidInput, match="target_shards"):
        run(around, "both", target_shards=[suite.items_pb2.BlobRef(digest="0" * 64)])


@pytest.mark.slow
def test_the_real_teacher_service_teaches(tmp_path):
    catalogue = suite.make_catalogue(tmp_path)
    settings = {
        "TEACHER_PORT": "0",
        "TEACHER_CATALOGUE": str(catalogue),
        "TEACHER_PRELOAD": suite.MODEL,
        "TEACHER_CACHE_DIR": str(tmp_path / "cache"),
        "TEACHER_BLOB_URL": str(tmp_path / "blobs"),
        "TEACHER_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "services.teacher"],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        wait_ready(address, process=process)
        around = Surroundings(cache_dir=tmp_path, catalogue=catalogue, teacher_address=address)
        result = run(around, "real", steps=2, model=f"projects/default/models/{suite.MODEL}")
        assert len(result.weights_digest) == 64
    finally:
        process.terminate()
        process.communicate(timeout=60)
