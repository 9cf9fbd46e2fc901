"""The HTTP application: routes, and errors to responses."""

from __future__ import annotations

import grpc.aio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from services.common import logs
from services.common.errors import StillhouseError
from services.gateway.http import statuses
from services.gateway.http.calls import BodyTooLarge, Caller
from services.gateway.http.pages import Pages
from services.gateway.http.rules import Rules
from services.gateway.http.transcode import Transcoder
from services.gateway.settings import GatewaySettings

_log = logs.get(__name__)
_ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def make_app(settings: GatewaySettings, channel: grpc.aio.Channel) -> Starlette:
    """Return the application that answers over a channel to the gateway itself."""
    caller = Caller(channel)
    transcoder = Transcoder(caller, Rules(), max_body_bytes=settings.max_message_bytes)
    routes = [
        Route("/v1/{rest:path}", transcoder.__call__, methods=_ANY),
        Route("/{rest:path}", Pages().__call__, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={
            grpc.aio.AioRpcError: _failed,
            StillhouseError: _failed,
            BodyTooLarge: _too_large,
            ClientDisconnect: _left,
            Exception: _broken,
        },
    )


async def _failed(request: Request, error: Exception) -> Response:
    return statuses.response(statuses.of(error))


async def _too_large(request: Request, error: Exception) -> Response:
    said = statuses.make("INVALID_ARGUMENT", str(error), reason="BODY_TOO_LARGE")
    return statuses.response(said, http=413)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _broken(request: Request, error: Exception) -> Response:
    _log.error("unexpected error", path=request.url.path, exc_info=error)
    return statuses.response(statuses.make("INTERNAL", "internal error"))
