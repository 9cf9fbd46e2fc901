"""The images of the services with models, and the whole of the gateway's: built as the Dockerfile
says, one at a time; started on real weights, probed, drained."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.student.v1 import student_pb2, student_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from tests.deploy.recipe import Image, cached_folder
from tests.deploy.running import USER, Container, container
from tests.student.suite import head_recipe, make_data
from tests.support import free_port, photo, wait_ready

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


def built(service: str) -> Image:
    image = Image(cached_folder(service), service)
    image.build()
    return image


@pytest.fixture
def metrics_port() -> int:
    return free_port()


def batches(port: int) -> int:
    """Return how many forward passes a service has made."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        found = re.findall(
            r"^stillhouse_batch_items_count(?:{.*})? (\S+)$", page.read().decode(), re.M
        )
    return int(sum(map(float, found)))


def until_computing(port: int, before: int) -> None:
    """Wait for one more forward pass than there were."""
    for _ in range(600):
        if batches(port) > before:
            return
        time.sleep(0.02)
    raise AssertionError("nothing was computed")


def end(service: Container) -> None:
    """Send SIGTERM as an orchestrator does."""
    service.process.send_signal(signal.SIGTERM)


def test_the_teachers_image_answers_a_batch_that_a_sigterm_meets(
    tmp_path: Path, metrics_port: int
) -> None:
    with container(built("teacher"), tmp_path, TEACHER_METRICS_PORT=str(metrics_port)) as teacher:
        wait_ready(teacher.address, process=teacher.process, timeout_s=600)
        assert teacher.health() == (0, "SERVING")
        items = [items_pb2.ImageInput(data=photo(seed)) for seed in range(256)]
        model = "projects/default/models/efficientnet-lite0"
        before = batches(metrics_port)
        with grpc.insecure_channel(teacher.address, options=OPTIONS) as channel:
            stub = teacher_pb2_grpc.TeacherServiceStub(channel)
            request = teacher_pb2.ClassifyRequest(model=model, items=items)
            call = stub.Classify.future(request, timeout=60)
            until_computing(metrics_port, before)
            end(teacher)
            assert not call.done()
            found = [one.WhichOneof("outcome") for one in call.result().results]
        assert found == ["classification"] * 256
        assert teacher.process.wait(60) == 0, teacher.log()


def test_the_concepts_image_answers_a_batch_that_a_sigterm_meets(
    tmp_path: Path, metrics_port: int
) -> None:
    more = {"CONCEPTS_METRICS_PORT": str(metrics_port)}
    with container(built("concepts"), tmp_path, **more) as concepts:
        wait_ready(concepts.address, process=concepts.process, timeout_s=600)
        assert concepts.health() == (0, "SERVING")
        items = [items_pb2.ImageInput(data=photo(seed)) for seed in range(256)]
        encoder = "projects/default/encoders/effl2-minilm"
        before = batches(metrics_port)
        with grpc.insecure_channel(concepts.address, options=OPTIONS) as channel:
            stub = concepts_pb2_grpc.ConceptsServiceStub(channel)
            request = concepts_pb2.EmbedImagesRequest(encoder=encoder, items=items)
            call = stub.EmbedImages.future(request, timeout=120)
            until_computing(metrics_port, before)
            end(concepts)
            assert not call.done()
            found = [one.WhichOneof("outcome") for one in call.result().results]
        assert found == ["embedding"] * 256
        assert concepts.process.wait(60) == 0, concepts.log()


def test_the_students_image_ends_a_short_run_that_a_sigterm_meets(tmp_path: Path) -> None:
    blobs = tmp_path / "lib" / "stillhouse" / "blobs"
    recipe = head_recipe(make_data(BlobStore(str(blobs))))
    with container(built("student"), tmp_path) as student:
        wait_ready(student.address, process=student.process, timeout_s=600)
        assert student.health() == (0, "SERVING")
        with grpc.insecure_channel(student.address) as channel, ThreadPoolExecutor(1) as pool:
            stub = student_pb2_grpc.StudentServiceStub(channel)
            request = student_pb2.TrainRequest(project="default", run_id="one", linear_head=recipe)
            events = stub.Train(request, timeout=120)
            first = pool.submit(next, events).result(90)
            assert first.WhichOneof("event") == "progress"
            end(student)
            last = [event.WhichOneof("event") for event in events][-1]
        assert last == "result", student.log()
        assert student.process.wait(60) == 0, student.log()
        if os.geteuid() == 0:
            assert {path.stat().st_uid for path in blobs.rglob("*")} == {USER}


def test_the_gateways_image_holds_the_workbench_and_no_node(tmp_path: Path) -> None:
    port = free_port()
    image = built("gateway")
    with container(image, tmp_path, GATEWAY_HTTP_PORT=str(port)) as gateway:
        wait_ready(gateway.address, process=gateway.process, timeout_s=600)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert b"<title>" in page.read()
    assert not list((image.folder / "opt" / "venv").rglob("node"))
