"""Starts the concepts service: `python -m services.concepts`."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
import uvloop

from services.common import logs, server
from services.common.process import keep_memory, share_cores
from services.concepts.settings import ConceptsSettings


def main() -> None:
    """Build the service from its settings and serve until a signal."""
    settings = ConceptsSettings()
    share_cores()
    keep_memory()
    logs.configure("concepts", level=settings.log_level, json=settings.log_json)
    uvloop.run(server.run(build(settings)))


def build(settings: ConceptsSettings) -> server.App:
    """Return the service; torch is imported here, after logging is set up."""
    from stillhouse.concepts.v1 import concepts_pb2_grpc

    from services.common.blobs import BlobStore
    from services.common.catalogue import load_catalogue
    from services.concepts.registry import Registry
    from services.concepts.servicer import ConceptsServicer
    from services.torch_common.threads import set_threads

    set_threads(settings.threads)
    catalogue = load_catalogue([settings.catalogue] if settings.catalogue else [])
    servicer = ConceptsServicer(
        settings, Registry(settings, catalogue), BlobStore(settings.blob_url)
    )

    def register(grpc_server: grpc.aio.Server) -> Sequence[str]:
        concepts_pb2_grpc.add_ConceptsServiceServicer_to_server(servicer, grpc_server)
        return ["stillhouse.concepts.v1.ConceptsService"]

    return server.App(
        service="concepts",
        settings=settings,
        register=register,
        start=servicer.canary,
        canary=servicer.canary,
        stop=servicer.close,
        device=settings.device,
    )


if __name__ == "__main__":
    main()
