"""Starts the student service: `python -m services.student`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio
import uvloop

from services.common import logs, server
from services.common.process import keep_memory, share_cores
from services.student.settings import StudentSettings


def main() -> None:
    """Build the service from its settings and serve until a signal."""
    settings = StudentSettings()
    share_cores()
    keep_memory()
    logs.configure("student", level=settings.log_level, json=settings.log_json)
    uvloop.run(server.run(build(settings)))


def build(settings: StudentSettings) -> server.App:
    """Return the service; torch is imported here, after logging is set up."""
    from stillhouse.inference.v2 import open_inference_pb2_grpc
    from stillhouse.student.v1 import student_pb2_grpc

    from services.common.blobs import BlobStore
    from services.common.inference.servicer import SERVICE, InferenceServicer
    from services.student.servicer import StudentServicer
    from services.torch_common.threads import set_threads

    set_threads(settings.threads)
    servicer = StudentServicer(settings, BlobStore(settings.blob_url))
    ready = asyncio.Event()
    inference = InferenceServicer("student", servicer.inference, ready.is_set)

    def register(grpc_server: grpc.aio.Server) -> Sequence[str]:
        student_pb2_grpc.add_StudentServiceServicer_to_server(servicer, grpc_server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, grpc_server)
        return ["stillhouse.student.v1.StudentService", SERVICE]

    return server.App(
        service="student",
        settings=settings,
        register=register,
        start=servicer.canary,
        canary=servicer.canary,
        stop=servicer.close,
        ready=ready,
        device=settings.device,
    )


if __name__ == "__main__":
    main()
