"""Ends the jobs and training runs that hostile requests start, lest they fill the time."""

from __future__ import annotations

import threading

import grpc
from google.protobuf.message import Message
from stillhouse.gateway.v1 import datasets_pb2, datasets_pb2_grpc, jobs_pb2, jobs_pb2_grpc
from stillhouse.student.v1 import student_pb2, student_pb2_grpc

from tests.hostile import messages
from tests.hostile.world import World

_LIVE = (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)
_INTERNAL = 13


class Janitor:
    """Cancels what runs, now and then, in a thread of its own."""

    def __init__(self, world: World, every_s: float = 15.0) -> None:
        self._world, self._every_s = world, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop cancelling."""
        self._over.set()
        self._thread.join()

    def broken(self) -> list[str]:
        """Return the jobs and data sets that ended with an INTERNAL error."""
        found: list[Message] = []
        with self._world.suite.channel() as channel:
            jobs = jobs_pb2_grpc.DistillationServiceStub(channel)
            data = datasets_pb2_grpc.DatasetServiceStub(channel)
            found += jobs.ListDistillationJobs(
                jobs_pb2.ListDistillationJobsRequest(project="default", page_size=1000), timeout=60
            ).jobs
            found += data.ListDatasets(
                datasets_pb2.ListDatasetsRequest(project="default", page_size=1000), timeout=60
            ).datasets
        return [
            f"{one.name}: {one.error.message}"[:600]
            for one in found
            if _INTERNAL in messages.statuses_of(one)
        ]  # type: ignore[attr-defined]

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._sweep()
            except grpc.RpcError:
                continue  # a service is busy, or gone, which the campaign sees by itself

    def _sweep(self) -> None:
        with self._world.suite.channel("student") as channel:
            stop = student_pb2_grpc.StudentServiceStub(channel).StopTraining
            for run in self._world.names["run_id"]:
                stop(student_pb2.StopTrainingRequest(project="default", run_id=run), timeout=30)
        with self._world.suite.channel() as channel:
            jobs = jobs_pb2_grpc.DistillationServiceStub(channel)
            listed = jobs_pb2.ListDistillationJobsRequest(project="default", page_size=1000)
            for job in jobs.ListDistillationJobs(listed, timeout=30).jobs:
                if job.state in _LIVE:
                    jobs.CancelDistillationJob(
                        jobs_pb2.CancelDistillationJobRequest(name=job.name), timeout=30
                    )
