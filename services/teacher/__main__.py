"""Starts the teacher service: `python -m services.teacher`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc.aio
import uvloop

from services.common import logs, server
from services.common.process import keep_memory, share_cores
from services.teacher.settings import TeacherSettings


def main() -> None:
    """Build the service from its settings and serve until a signal."""
    settings = TeacherSettings()
    share_cores()
    keep_memory()
    logs.configure("teacher", level=settings.log_level, json=settings.log_json)
    uvloop.run(server.run(build(settings)))


def build(settings: TeacherSettings) -> server.App:
    """Return the service; torch is imported here, after logging is set up."""
    from stillhouse.inference.v2 import open_inference_pb2_grpc
    from stillhouse.teacher.v1 import teacher_pb2_grpc

    from services.common.blobs import BlobStore
    from services.common.catalogue import load_catalogue
    from services.common.inference.images import image_limits
    from services.common.inference.servicer import SERVICE, InferenceServicer
    from services.teacher.inference import TeacherInference
    from services.teacher.language.calls import LanguageCalls
    from services.teacher.registry import Registry
    from services.teacher.servicer import TeacherServicer
    from services.torch_common.language.files import ModelSource
    from services.torch_common.threads import set_threads

    set_threads(settings.threads)
    blobs = BlobStore(settings.blob_url)
    catalogue = load_catalogue([settings.catalogue] if settings.catalogue else [])
    registry = Registry(settings, catalogue, blobs)
    source = ModelSource(catalogue, blobs, settings.cache_dir)
    language = LanguageCalls(settings, source, registry.device, blobs)
    servicer = TeacherServicer(settings, registry, blobs, language)
    ready = asyncio.Event()
    models = TeacherInference(servicer, image_limits(settings))
    inference = InferenceServicer("teacher", models, ready.is_set)

    def register(grpc_server: grpc.aio.Server) -> Sequence[str]:
        teacher_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, grpc_server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, grpc_server)
        return ["stillhouse.teacher.v1.TeacherService", SERVICE]

    return server.App(
        service="teacher",
        settings=settings,
        register=register,
        start=servicer.canary,
        canary=servicer.canary,
        stop=servicer.close,
        device=settings.device,
        ready=ready,
    )


if __name__ == "__main__":
    main()
