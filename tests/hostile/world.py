"""A whole suite with a little of everything in it, and the names of what it holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.gateway.v1 import students_pb2, students_pb2_grpc
from stillhouse.inference.v2 import open_inference_pb2 as oip
from stillhouse.inference.v2 import open_inference_pb2_grpc as oip_grpc

from services.common.tensors import to_message
from tests.e2e import language
from tests.e2e.suite import PROJECT, SERVICES, Suite, suite
from tests.hostile.entry import Rpc, rpcs
from tests.student import language_suite
from tests.support import free_port, photo

TINY = f"{PROJECT}/models/{language_suite.MODEL}"
LITE = f"{PROJECT}/models/efficientnet-lite0"
ENCODER = f"{PROJECT}/encoders/effl2-minilm"


@dataclass
class World:
    """The running suite, its RPCs, and plausible values by field name or message type."""

    suite: Suite
    http_port: int
    names: dict[str, list[Any]]
    rpcs: list[Rpc] = field(default_factory=list)

    @property
    def pids(self) -> dict[str, int]:
        return {name: one.process.pid for name, one in self.suite.running.items()}


@contextmanager
def world(folder: Path, *, images: int = 24) -> Iterator[World]:
    """Run a suite in `folder` until the block ends; a job makes a student of `images` photos."""
    folder.mkdir(parents=True, exist_ok=True)
    catalogue, port = str(language_suite.make_catalogue(folder)), free_port()
    more = {name: _settings(name, catalogue) for name in SERVICES}
    more["gateway"]["GATEWAY_HTTP_PORT"] = str(port)
    with suite(folder, threads=1, more=more) as running:
        found = World(running, port, _fill(running, images))
        for name in SERVICES:
            with running.channel(name) as channel:
                found.rpcs += rpcs(name, channel)
        yield found


def _settings(name: str, catalogue: str) -> dict[str, str]:
    """A short catalogue, short answers, logs that a program reads."""
    prefix = name.upper()
    given = {"CATALOGUE": catalogue, "LOG_JSON": "true", "DRAIN_S": "3"}
    return {f"{prefix}_{key}": value for key, value in given.items()}


def _fill(running: Suite, images: int) -> dict[str, list[Any]]:
    """Make data, a model and a student; return their names."""
    texts = [
        json.dumps({"text": one.text, "split": s})
        for s in ("train", "test")
        for one in language_suite.texts(12, split=s)
    ]
    (running.folder / "texts.jsonl").write_text("\n".join(texts))
    language.add_texts(running, "notes", f"file://{running.folder}/texts.jsonl")
    names = _names()
    if images:
        job = running.prepare(images)
        made = running.finish(running.create(job))
        _add_made(names, made)
        with running.channel() as channel:
            request = students_pb2.GetStudentVersionRequest(name=made.student_version)
            stub = students_pb2_grpc.StudentsServiceStub(channel)
            ref = stub.GetStudentVersion(request, timeout=60).version.student_ref
        names["stillhouse.student.v1.StudentRef"] = [ref]
    else:
        running.add_dataset("fruit", "builtin:fruit-coarse", 12)
    with running.channel() as channel:
        names["inference.ModelInferRequest"] = _infers(channel, names)
    blobs = [path for path in (running.folder / "blobs").rglob("*") if _is_digest(path.name)]
    names["stillhouse.common.v1.BlobRef"] = [
        items_pb2.BlobRef(digest=path.name, size_bytes=path.stat().st_size) for path in blobs
    ]
    names["digest"] += [path.name for path in blobs]
    return names


def _is_digest(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _add_made(names: dict[str, list[Any]], job: Any) -> None:
    student = job.student_version.rpartition("/versions/")[0]
    names["GetDistillationJob.name"] = names["WatchDistillationJob.name"] = names["job"] = [
        job.name
    ]
    for method in (
        "GetStudentVersion",
        "EvaluateStudentVersion",
        "InspectStudentVersion",
        "RenameStudentVersion",
    ):
        names[f"{method}.name"] = [job.student_version]
    names["ExportStudent.name"] = names["PromoteStudentVersion.name"] = [job.student_version]
    names["GetStudent.name"] = [student]
    names["student"] = [student]
    names["version"] = names["first_version"] = names["second_version"] = ["", job.student_version]
    names["expected_head"] = names["base_version"] = ["", job.student_version]


def _names() -> dict[str, list[Any]]:
    """What exists in every world, by field name, `Method.field` or message type."""
    encoder = {f"{method}.name": [ENCODER] for method in ("GetEncoder",)}
    ids = np.array([[5, 6, 7, 8]], np.int32)
    tensors = [
        to_message(one)
        for one in (ids[0], ids, ids[0].astype(np.int64), np.array([0, 4], np.int64), np.ones(4,
        np.uint8),
                    np.zeros((3, 384), np.float16), np.zeros(384, np.float32), np.zeros((0, 384),
                    np.float32))
    ]  # fmt: skip
    return encoder | {
        "project": ["default"], "repository_name": ["default"], "name": [TINY, LITE, ENCODER],
        "model_name": [TINY, LITE],
        "model": [LITE, TINY], "Score.model": [TINY], "Generate.model": [TINY],
        "GenerateText.model": [TINY],
        "SampleTargets.model": [TINY], "Classify.model": [LITE], "teacher": [LITE],
        "backbone": [LITE], "base": [TINY],
        "tuned": [TINY], "target": [TINY], "generator": [TINY], "encoder": [ENCODER],
        "student": [TINY],
        "dataset": [f"{PROJECT}/datasets/fruit", f"{PROJECT}/datasets/notes"],
        "GetDataset.name": [f"{PROJECT}/datasets/fruit"],
        "GetConceptSet.name": [f"{PROJECT}/conceptSets/everyday"],
        "concept_set": [f"{PROJECT}/conceptSets/everyday"],
        "concepts": ["red", "round", "leaf"], "concept": ["red"], "words": ["red", "round",
        "leaf"], "texts": ["a red apple"],
        "label": ["Apple", ""], "labels": ["Apple"], "class_names": ["Apple"], "split": ["",
        "train", "test"], "item_id": ["a", "b"],
        "text": ["red cat dog"], "content": ["red cat"], "role": ["user"], "data": [photo(1),
        photo(2, form="PNG")],
        "chunk": [b"x" * 100], "factor": [2.0, 1.5], "direction": [1, 2], "max_tokens": [1, 4],
        "temperature": [0.0, 1.0],
        "top_p": [1.0], "page_size": [0, 1, 50], "seed": [0, 1], "max_steps": [1],
        "batch_sequences": [2], "sequence_length": [64],
        "learning_rate": [1e-3], "bytes_per_token": [40.0], "top_k": [4], "nec": [3.0],
        "l1": [1e-4], "rank": [4], "layers": [1],
        "dataset_id": [""], "model_id": ["made"], "student_id": ["made"],
        "concept_set_id": ["mine"], "run_id": [f"run-{n}" for n in range(4)],
        "uri": ["builtin:fruit-coarse", "builtin:wordnet-facts?facts=4"], "digest": ["0" * 64],
        "pattern": ["a+"],
        "stillhouse.common.v1.Tensor": tensors,
        "stillhouse.common.v1.ImageInput": [items_pb2.ImageInput(item_id=str(n),
        data=photo(n)) for n in range(4)],
        "stillhouse.common.v1.Sampling": [language_pb2.Sampling(max_tokens=3)],
    }  # fmt: skip


def _infers(channel: grpc.Channel, names: dict[str, list[Any]]) -> list[oip.ModelInferRequest]:
    """Valid requests of the Open Inference Protocol, by what the models say of themselves."""
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    students = [name for name in names["student"] if "/students/" in name]
    found = []
    for name in (LITE, *students):
        about = stub.ModelMetadata(oip.ModelMetadataRequest(name=name), timeout=120)
        for spec in about.inputs:
            tensor = oip.ModelInferRequest.InferInputTensor(name=spec.name, datatype=spec.datatype)
            tensor.shape.extend(max(1, size) for size in spec.shape)
            data = photo(1) if "image" in spec.name else b"red cat"
            raw = struct.pack("<I", len(data)) + data
            if spec.datatype != "BYTES":
                width = int("".join(c for c in spec.datatype if c.isdigit()) or 8) // 8
                raw = bytes(width * int(np.prod([max(1, size) for size in spec.shape])))
            found.append(
                oip.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[raw])
            )
    return found
