"""The gateway's image: installed alone, without torch; started, probed, drained.

Only the workbench is left out here; test_model_images.py builds everything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from stillhouse.gateway.v1 import models_pb2, models_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from tests.deploy.recipe import Image, cached_folder
from tests.deploy.running import confined, container, environment
from tests.support import wait_ready

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def image() -> Image:
    built = Image(cached_folder("gateway"), "gateway", without="web.py")
    built.build()
    return built


@pytest.fixture
def slow_teacher() -> Iterator[tuple[str, threading.Event]]:
    """A teacher that answers two seconds after it was asked, and says when that was."""
    asked = threading.Event()

    class Teacher(teacher_pb2_grpc.TeacherServiceServicer):  # type: ignore[misc]
        def ListModels(self, request: Any, context: Any) -> teacher_pb2.ListModelsResponse:
            asked.set()
            time.sleep(2.0)
            return teacher_pb2.ListModelsResponse(models=[teacher_pb2.Model(name="late")])

    server = grpc.server(ThreadPoolExecutor(1))
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(Teacher(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", asked
    server.stop(None)


def run(image: Image, data: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the image."""
    return subprocess.run(
        confined(image, data, list(command)),
        env=environment(image, 0),
        capture_output=True,
        text=True,
    )


def test_it_is_installed_without_torch_and_imports(image: Image, tmp_path: Path) -> None:
    script = (
        "import importlib.metadata, sys, services.gateway.assembly, services.gateway.http.app\n"
        "names = {d.name.lower() for d in importlib.metadata.distributions()}\n"
        "print(sorted(names & {'torch', 'timm', 'transformers', 'open-clip-torch'}))\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'torch'])\n"
        "print(services.__file__)\n"
        "print(sys.version)"
    )
    done = run(image, tmp_path, image.python, "-c", script)
    assert done.returncode == 0, done.stderr
    installed, loaded, place, version = done.stdout.splitlines()
    assert (installed, loaded) == ("[]", "[]")
    assert place.startswith(f"{image.folder}/opt/venv/")
    plainly = [image.python, "-c", "import sys; print(sys.version)"]
    assert version == subprocess.check_output(plainly, text=True).strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to confine")
def test_its_root_cannot_be_written_to_and_its_volumes_can(image: Image, tmp_path: Path) -> None:
    script = f"id -u; touch {image.folder}/opt/x {image.folder}/src/y /etc/z; touch here /tmp/here"
    done = run(image, tmp_path, "sh", "-c", script)
    assert done.stdout == "10001\n"
    assert done.stderr.count("Read-only file system") == 3
    assert "here" not in done.stderr
    assert (tmp_path / "lib" / "stillhouse" / "here").exists()


def test_it_starts_is_probed_and_answers_what_is_in_flight_before_it_ends(
    image: Image, tmp_path: Path, slow_teacher: tuple[str, threading.Event]
) -> None:
    address, asked = slow_teacher
    with container(image, tmp_path, GATEWAY_TEACHER_ADDRESS=address) as gateway:
        wait_ready(gateway.address, process=gateway.process)
        assert gateway.health() == (0, "SERVING")
        with grpc.insecure_channel(gateway.address) as channel:
            stub = models_pb2_grpc.ModelServiceStub(channel)
            request = models_pb2.ListTeachersRequest(project="default")
            call = stub.ListTeachers.future(request, timeout=30)
            assert asked.wait(20), gateway.log()
            gateway.process.send_signal(signal.SIGTERM)
            assert [model.name for model in call.result().models] == ["late"]
        assert gateway.process.wait(60) == 0, gateway.log()
        assert gateway.health() == (1, "UNAVAILABLE")
