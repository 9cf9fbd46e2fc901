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
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import students_pb2, students_pb2_grpc
from stillhouse.inference.v2 import open_inference_pb2 as oip
from stillhouse.inference.v2 import open_inference_pb2_grpc as oip_grpc

from tests.e2e import language
from tests.e2e.suite import SERVICES, Suite, suite
from tests.hostile.entry import Rpc, rpcs
from tests.hostile.names import LITE, plausible_names
from tests.student import language_suite
from tests.support import free_port, photo


@dataclass
class World:
    """The running suite, its RPCs, and plausible values by field name or message type."""

    suite: Suite
    http_port: int
    names: dict[str, list[Any]]
    rpcs: list[Rpc] = field(default_factory=list)

    @property
    def ports(self) -> dict[str, int]:
        return self.suite.ports

    @property
    def socket(self) -> Path:
        return self.suite.socket

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
    names = plausible_names()
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
