"""Serves the contract's RPCs as JSON over HTTP, by their annotations."""

from __future__ import annotations

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.http import calls, payloads, statuses, streams
from services.gateway.http.calls import Caller
from services.gateway.http.rules import Rule, Rules

_JSON = "application/json"
_NO_STORE = {"Cache-Control": "no-store"}


class Transcoder:
    """Answers a request for any path below /v1 that the annotations name."""

    def __init__(self, caller: Caller, rules: Rules, *, max_body_bytes: int) -> None:
        self._caller = caller
        self._rules = rules
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Answer a request; errors of calls are raised."""
        path = str(request.scope["path"])
        found = self._rules.find(request.method, path)
        if found is None:
            return _unknown(path, self._rules.verbs(path))
        rule, fields = found
        body = await calls.body_of(request, self._max_body_bytes, self._caller)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != _JSON:
            said = statuses.make("INVALID_ARGUMENT", f"send the body as {_JSON}")
            return statuses.response(said, http=415)
        query = request.query_params.multi_items()
        message = await payloads.to_request(rule, fields, query, body)
        if rule.bytes_field:
            digest = fields.get("digest", "")
            return await streams.file(self._caller, rule, message, request, digest)
        if rule.is_stream:
            return await streams.events(self._caller, rule, message, request)
        return await self._answer(rule, message, request)

    async def _answer(self, rule: Rule, message: Message, request: Request) -> Response:
        answer = await self._caller.unary(rule, message, request)
        return Response(await payloads.to_json(answer), headers=_NO_STORE, media_type=_JSON)


def _unknown(path: str, verbs: list[str]) -> Response:
    if not verbs:
        return statuses.response(statuses.make("NOT_FOUND", f"there is no {path[:200]}"))
    said = statuses.make("UNIMPLEMENTED", f"{path[:200]} takes {', '.join(verbs)}")
    response = statuses.response(said, http=405)
    response.headers["Allow"] = ", ".join(verbs)
    return response
