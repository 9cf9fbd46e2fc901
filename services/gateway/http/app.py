"""The HTTP application: routes, and errors to responses."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import grpc.aio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from stillhouse.common.v1 import info_pb2, info_pb2_grpc
from stillhouse.gateway.v1 import access_pb2

from services.common.errors import Internal, StillhouseError
from services.common.images import Limits
from services.gateway.http import calls, openapi, payloads, statuses, uploads
from services.gateway.http.calls import BodyTooLarge, Caller
from services.gateway.http.guards import Guards
from services.gateway.http.pages import Pages
from services.gateway.http.rules import Rules
from services.gateway.http.session import Sessions
from services.gateway.http.thumbnails import Thumbnails
from services.gateway.http.transcode import Transcoder
from services.gateway.settings import GatewaySettings

_ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_PROJECT = "/v1/projects/{project}"


def make_app(settings: GatewaySettings, channel: grpc.aio.Channel) -> ASGIApp:
    """Return the application that answers over a channel to the gateway itself."""
    caller = Caller(channel)
    limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
    upload = uploads.Uploads(caller, max_bytes=settings.max_archive_bytes)
    thumbnails = Thumbnails(caller, limits, asks=settings.auth == "required")
    transcoder = Transcoder(caller, Rules(), max_body_bytes=settings.max_message_bytes)
    routes = [
        Route("/openapi.json", _openapi),
        Route("/v1/info", functools.partial(_info, caller, _edge_info(settings))),
        Route(f"{_PROJECT}/archives", upload.__call__, methods=["POST"]),
        Route(f"{_PROJECT}/images/{{digest}}", thumbnails.__call__, methods=["GET"]),
        Route("/v1/session", Sessions(caller).__call__, methods=["POST", "DELETE"]),
        Route("/v1/{rest:path}", transcoder.__call__, methods=_ANY),
        Route("/{rest:path}", Pages().__call__, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            grpc.aio.AioRpcError: _failed,
            StillhouseError: _failed,
            BodyTooLarge: _too_large,
            ClientDisconnect: _left,
            405: _wrong_verb,
            Exception: _broken,
        },
    )
    return Guards(app, settings.http_host or settings.host, settings.allowed_hosts)


async def _openapi(request: Request) -> Response:
    return Response(
        await asyncio.to_thread(_document),
        headers={"Cache-Control": "no-cache"},
        media_type="application/json",
    )


@functools.cache
def _document() -> bytes:
    return json.dumps(openapi.document(), separators=(",", ":")).encode()


def _edge_info(settings: GatewaySettings) -> dict[str, Any]:
    """Return what the edge adds to GetInfo: its own limit, and which credentials are taken."""
    taken = [access_pb2.CREDENTIAL_KIND_NONE]
    if settings.auth == "required":
        taken = [access_pb2.CREDENTIAL_KIND_API_KEY]
        taken += [access_pb2.CREDENTIAL_KIND_TOKEN] if settings.oidc_issuer else []
    return {
        "maxArchiveBytes": str(settings.max_archive_bytes),
        "credentials": [access_pb2.CredentialKind.Name(kind) for kind in taken],
    }


async def _info(caller: Caller, more: dict[str, Any], request: Request) -> Response:
    stub = info_pb2_grpc.InfoServiceStub(caller.channel)
    metadata = calls.metadata(request)
    answer = await stub.GetInfo(info_pb2.GetInfoRequest(), metadata=metadata, timeout=calls.CALL_S)
    found = {**json.loads(payloads.dump(answer)), **more}
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(found), headers=headers, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    return statuses.response(statuses.of(error))


async def _too_large(request: Request, error: Exception) -> Response:
    return uploads.refuse(statuses.of(error), http=413)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _wrong_verb(request: Request, error: Exception) -> Response:
    said = f"{request.method} is not a method of {str(request.scope['path'])[:200]}"
    response = statuses.response(statuses.make("UNIMPLEMENTED", said), http=405)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    said = f"internal error; quote request id {request.state.request_id}"
    return statuses.response(Internal(said).to_status())
