"""Sessions of browsers: a key is sent once, and a cookie that no script can read stands for it."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from stillhouse.gateway.v1 import access_pb2 as pb
from stillhouse.gateway.v1 import access_pb2_grpc

from services.gateway.access.authenticator import COOKIE
from services.gateway.http import calls
from services.gateway.http.calls import Caller

_NO_STORE = {"Cache-Control": "no-store"}


class Sessions:
    """`POST /v1/session` with the key as bearer, and `DELETE /v1/session`."""

    def __init__(self, caller: Caller) -> None:
        self._stub = access_pb2_grpc.AccessServiceStub(caller.channel)

    async def __call__(self, request: Request) -> Response:
        """Open or end a session; errors of the call are raised."""
        metadata = calls.metadata(request)
        if request.method == "DELETE":
            await self._stub.EndSession(
                pb.EndSessionRequest(), metadata=metadata, timeout=calls.CALL_S
            )
            return self._ended(request)
        made = await self._stub.CreateSession(
            pb.CreateSessionRequest(), metadata=metadata, timeout=calls.CALL_S
        )
        response = Response(status_code=204, headers=_NO_STORE)
        lasts_s = max(0, int(made.expire_time.seconds - time.time()))
        response.set_cookie(COOKIE, made.token, max_age=lasts_s, **_how(request))
        return response

    def _ended(self, request: Request) -> Response:
        # What the browser has kept of pictures was for whoever was logged in.
        response = Response(status_code=204, headers={**_NO_STORE, "Clear-Site-Data": '"cache"'})
        response.delete_cookie(COOKIE, **_how(request))
        return response


def _how(request: Request) -> dict[str, Any]:
    """Return the attributes of the cookie. The page's own scheme says whether it may cross in
    plain text: behind a proxy that ends TLS, the request's says nothing."""
    origin = request.headers.get("origin", "")
    secure = request.url.scheme == "https" or origin.lower().startswith("https://")
    return {"path": "/", "secure": secure, "httponly": True, "samesite": "strict"}
