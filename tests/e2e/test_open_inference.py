"""The Open Inference Protocol with others at its other end: tritonclient asks us, and we ask
MLServer."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2
from PIL import Image
from safetensors.torch import load_file
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2, students_pb2, students_pb2_grpc
from stillhouse.inference.v2 import open_inference_pb2, open_inference_pb2_grpc
from stillhouse.student.v1 import student_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.fetch import ensure
from services.common.images import decode
from services.common.tensors import from_message, unpack_arrays
from services.student.classifier.onnx_export import export_classifier
from services.torch_common.preprocess import Preprocessing
from services.torch_common.timm_models import build_timm
from tests.e2e.foreign.environments import HERE, environment
from tests.e2e.suite import PROJECT, Suite, suite
from tests.support import free_port, photo

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CACHE = Path.home() / ".cache" / "stillhouse"
CLASSES = ["Apple", "Melon", "Orange", "Pear", "Satsumas"]
HEAD, FAR = f"{PROJECT}/models/fruit-teacher", f"{PROJECT}/models/far-fruit"
FRUIT = f"{PROJECT}/students/fruit"


@dataclass(frozen=True)
class World:
    """A suite with a teacher head, a tuned student, and MLServer's port in its catalogue."""

    suite: Suite
    mlserver_port: int
    tuned: str
    """Number of the tuned version."""


def catalogue(folder: Path, port: int, classes: list[str]) -> Path:
    """A catalogue whose `far-fruit` is in an MLServer."""
    path = folder / "far.toml"
    path.write_text(f"""
[entries.far-fruit]
kind = "image-classifier"
loader = "oip"
licence = "Apache-2.0"
url = "grpc://127.0.0.1:{port}"
remote_model = "fruit"
input_name = "image"
input_format = "uint8"
output_name = "logits"
max_batch = 8
classes = {json.dumps(classes)}
input = {{ size_px = 224, crop_pct = 0.875, interpolation = "bicubic" }}
""")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, port = tmp_path_factory.mktemp("oip"), free_port()
    path = catalogue(folder, port, CLASSES)
    with suite(folder / "suite", more={"teacher": {"TEACHER_CATALOGUE": str(path)}}) as running:
        running.finish(running.create(running.prepare()))
        yield World(running, port, tune(running))


def tune(running: Suite) -> str:
    """Change a weight of the student and return the version's number."""
    with running.channel() as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        name = students_pb2.GetStudentVersionRequest(name=f"{FRUIT}/versions/head")
        (first, *_) = stub.GetStudentVersion(name, timeout=60).version.class_concepts
        edit = student_pb2.ConceptEdit(
            label=first.label,
            concept=first.concepts[0].concept,
            direction=student_pb2.DIRECTION_DOWN,
            factor=3,
        )
        request = students_pb2.TuneStudentRequest(student=FRUIT, edits=[edit])
        return stub.TuneStudent(request, timeout=120).version.name.rsplit("/", 1)[-1]


def triton(**asked: Any) -> dict[str, Any]:
    """What tritonclient tells in its own environment."""
    done = subprocess.run(
        [environment("tritonclient"), HERE / "triton_calls.py"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def ask_as_triton(address: str, model: str, version: str, data: list[bytes]) -> dict[str, Any]:
    pixels = np.stack([np.asarray(decode(one)) for one in data])
    return triton(
        what="calls",
        address=address,
        model=model,
        version=version,
        images=[base64.b64encode(one).decode() for one in data],
        pixels=base64.b64encode(pixels.tobytes()).decode(),
        shape=pixels.shape,
    )


def array(told: list[Any]) -> np.ndarray:
    dtype, shape, text = told
    return np.frombuffer(bytes.fromhex(text), dtype).reshape(shape)


def lossless(seed: int) -> bytes:
    """A photo whose pixels are its bytes' own, whoever decodes it."""
    out = io.BytesIO()
    Image.open(io.BytesIO(photo(seed))).save(out, "PNG")
    return out.getvalue()


def numbers(file: descriptor_pb2.FileDescriptorProto) -> dict[str, tuple[int, int, int, str]]:
    """Number, type, label and type's name of every field, by its full name; streams of every
    method."""
    found: dict[str, tuple[int, int, int, str]] = {}

    def walk(message: descriptor_pb2.DescriptorProto, above: str) -> None:
        for one in message.field:
            key = f"{above}.{message.name}.{one.name}"
            found[key] = (one.number, one.type, one.label, one.type_name)
        for nested in message.nested_type:
            walk(nested, f"{above}.{message.name}")

    for message in file.message_type:
        walk(message, file.package)
    for service in file.service:
        for at in service.method:
            streams = (int(at.client_streaming), int(at.server_streaming))
            key = f"{file.package}.{service.name}.{at.name}"
            found[key] = (*streams, 0, f"{at.input_type} {at.output_type}")
    return found


def test_the_contract_is_that_of_triton() -> None:
    theirs = descriptor_pb2.FileDescriptorProto()
    theirs.ParseFromString(base64.b64decode(triton(what="contract")["file"]))
    ours = descriptor_pb2.FileDescriptorProto()
    open_inference_pb2.DESCRIPTOR.CopyToProto(ours)
    wanted = numbers(theirs)
    found = numbers(ours)
    assert {key: wanted.get(key) for key in found} == found


def our_teacher(world: World, data: list[bytes], model: str) -> np.ndarray:
    with world.suite.channel("teacher") as channel:
        items = [items_pb2.ImageInput(data=one) for one in data]
        reply = teacher_pb2_grpc.TeacherServiceStub(channel).Classify(
            teacher_pb2.ClassifyRequest(model=model, items=items), timeout=120
        )
    return np.stack([from_message(one.classification.logits) for one in reply.results])


@pytest.mark.parametrize("service", ["teacher", "gateway"])
def test_tritonclient_gets_our_answers_from_a_teacher(world: World, service: str) -> None:
    data = [lossless(n) for n in range(4)]
    told = ask_as_triton(f"127.0.0.1:{world.suite.ports[service]}", "fruit-teacher", "", data)
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert told["server"]["name"] == f"stillhouse-{service}"
    wanted = our_teacher(world, data, HEAD)
    for way in ("encoded", "uint8"):
        found = told[way]["outputs"]
        np.testing.assert_allclose(array(found["logits"]), wanted, atol=1e-4)
        assert array(found["embeddings"]).dtype == np.float16
        assert told[way]["id"] == "a call"
    order = np.argsort(-wanted, axis=1)
    best = [[text.rsplit(":", 1)[-1] for text in row] for row in told["best"]]
    assert best == [[CLASSES[column] for column in row[:2]] for row in order]
    status, said = told["refused"]
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert said.startswith("images[1]:")
    (counted,) = told["statistics"]["model_stats"]
    assert int(counted["inference_count"]) >= 12
    states = {one["name"]: one.get("state") for one in told["index"]["models"]}
    assert states["fruit-teacher"] == "READY"


def test_tritonclient_gets_our_answers_from_a_tuned_student(world: World) -> None:
    data = [lossless(n) for n in range(3)]
    address = f"127.0.0.1:{world.suite.ports['gateway']}"
    told = ask_as_triton(address, "students/fruit", world.tuned, data)
    items = [items_pb2.ImageInput(data=one) for one in data]
    with world.suite.channel() as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        predict = students_pb2.PredictImagesRequest(student=FRUIT, version=world.tuned, items=items)
        predicted = stub.PredictImages(predict, timeout=120).results
        before = stub.PredictImages(
            students_pb2.PredictImagesRequest(student=FRUIT, version="1", items=items), timeout=120
        ).results
        explain = students_pb2.ExplainImagesRequest(student=FRUIT, version=world.tuned, items=items)
        explained = stub.ExplainImages(explain, timeout=120).results
    logits = np.stack([from_message(one.prediction.logits) for one in predicted])
    assert (logits != np.stack([from_message(one.prediction.logits) for one in before])).any()
    for way in ("encoded", "uint8"):
        found = told[way]["outputs"]
        np.testing.assert_allclose(array(found["logits"]), logits, atol=1e-3)
        assert told[way]["version"] == world.tuned
        for at, one in enumerate(explained):
            parts = one.explanation.contributions
            assert [word for word in found["concepts"][at] if word] == [p.concept for p in parts]
            listed = array(found["contributions"])[at][: len(parts)]
            np.testing.assert_allclose(listed, [p.contribution for p in parts], atol=1e-3)


def head_as_onnx(world: World) -> bytes:
    """The suite's trained head on its backbone as one ONNX file, by our own exporter."""
    entry = load_catalogue().image_model("efficientnet-lite0")
    assert entry.input is not None
    model = build_timm(entry.architecture, 1000)
    model.load_state_dict(load_file(ensure(entry, CACHE)), strict=True)
    blobs = BlobStore(str(world.suite.folder / "blobs"))
    record = json.loads(blobs.get_ref("default", "models/fruit-teacher"))
    assert record["classes"] == CLASSES
    arrays = unpack_arrays(blobs.get("default", record["head"]), what="head")
    head = torch.nn.Linear(arrays["weight"].shape[1], len(CLASSES))
    head.weight.data = torch.from_numpy(arrays["weight"].copy())
    head.bias.data = torch.from_numpy(arrays["bias"].copy())
    model.classifier = head
    preprocessing = Preprocessing.from_spec(entry.input)
    return export_classifier(model.eval(), preprocessing, CLASSES, multi_label=False)


@contextmanager
def mlserver(folder: Path, port: int, model: bytes) -> Iterator[None]:
    """MLServer with the model `fruit`, until the block ends."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    (folder / "runtime.py").write_text((HERE / "mlserver_runtime.py").read_text())
    settings = {
        "host": "127.0.0.1",
        "grpc_port": port,
        "http_port": free_port(),
        "metrics_endpoint": None,
        "parallel_workers": 0,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    told = {
        "name": "fruit",
        "implementation": "runtime.OnnxClassifier",
        "parameters": {"uri": "./model.onnx", "version": "7"},
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 224, 224, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, len(CLASSES)]}],
    }
    (folder / "model-settings.json").write_text(json.dumps(told))
    command = environment("mlserver").with_name("mlserver")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "start", folder], stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}
        )
        try:
            wait_for(port, process, folder / "log")
            yield
        finally:
            process.terminate()
            process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server's model is ready."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                request = open_inference_pb2.ModelReadyRequest(name="fruit")
                if stub.ModelReady(request, timeout=2).ready:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.2)
    raise RuntimeError(log.read_text()[-3000:])


def test_a_model_in_mlserver_is_a_teacher(world: World, tmp_path: Path) -> None:
    data = [photo(n) for n in range(20)]
    with mlserver(tmp_path / "mlserver", world.mlserver_port, head_as_onnx(world)):
        found = our_teacher(world, data, FAR)
        wanted = our_teacher(world, data, HEAD)
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=5e-2)
        np.testing.assert_array_equal(found.argmax(axis=1), wanted.argmax(axis=1))
        spec = jobs_pb2.ConceptJobSpec(
            dataset=f"{PROJECT}/datasets/fruit", teacher=FAR, student_id="far", control_draws=-1
        )
        job = world.suite.finish(world.suite.create(jobs_pb2.DistillationJob(concept=spec)))
        assert job.student_version == f"{PROJECT}/students/far/versions/1"
    with pytest.raises(grpc.RpcError) as caught:
        our_teacher(world, data[:1], FAR)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
