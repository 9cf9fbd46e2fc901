"""The one place where calls are let in: credentials, role, quota, and the audit log, by the rule
that the contract gives each RPC."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.rpc import code_pb2

from services.common import callers
from services.common.errors import InvalidInput, StillhouseError
from services.common.interceptors import Context, WrappingInterceptor
from services.gateway.access import gate, identity, resources
from services.gateway.access.audit import AuditLog, Entry
from services.gateway.access.authenticator import Authenticator
from services.gateway.access.identity import EVERY, NOBODY, Identity
from services.gateway.access.quotas import Quotas
from services.gateway.access.rules import INSTALLATION, PUBLIC, Rule, rule_of


@dataclass(frozen=True)
class Access:
    """What decides about calls."""

    authenticator: Authenticator
    quotas: Quotas
    audit: AuditLog


class AccessInterceptor(WrappingInterceptor):
    """Stands before every handler, inside the interceptor that turns errors into statuses."""

    def __init__(self, access: Access) -> None:
        super().__init__(functools.partial(_guarded, access=access))


class _Call:
    """One call: let in or refused, and what the audit log says of it."""

    def __init__(self, access: Access, method: str, rule: Rule, context: Context) -> None:
        self._access, self._method, self._rule, self._context = access, method, rule, context
        self._who: Identity = NOBODY
        self._projects: tuple[str, ...] = ()

    async def identify(self) -> None:
        """Find out who calls, before anything of the request is looked at."""
        try:
            metadata = dict(self._context.invocation_metadata() or ())
            self._who = await self._access.authenticator.identify(metadata)
        except StillhouseError as error:
            self._refused(None, error)
            raise
        identity.bind(self._who)

    async def admit(self, request: Any) -> None:
        """Let the call in. Raises what it is refused with."""
        self._projects = gate.projects_of(request)
        try:
            gate.check(self._rule, self._who, self._projects, request)
            for project in self._projects:
                # Nobody uses up what a project may do who has no role in it.
                # And whoever sets limits is not held up by them.
                counts = project != EVERY and self._rule.scope != INSTALLATION
                if counts and self._who.role_in(project):
                    await self._access.quotas.admit(project, stores=self._rule.stores)
        except StillhouseError as error:
            self._refused(request, error)
            raise

    async def follow(self, request: Any, work: Awaitable[Any]) -> Any:
        """Wait for a call that changes something, and write down what became of it."""
        try:
            response = await work
        except asyncio.CancelledError:
            self._access.audit.note(self._entry(request, None, "CANCELLED", ""))
            raise
        except Exception as error:
            code, said = _outcome(error)
            await self._access.audit.add(self._entry(request, None, code, said))
            raise
        await self._access.audit.add(self._entry(request, response, "OK", ""))
        return response

    def _refused(self, request: Any, error: StillhouseError) -> None:
        code, said = _outcome(error)
        self._access.audit.refused(self._entry(request, None, code, said))

    def _entry(self, request: Any, response: Any, code: str, said: str) -> Entry:
        project = self._projects[0] if self._projects else ""
        return Entry(
            project="" if project == EVERY else project,
            subject=self._who.subject,
            display_name=self._who.display_name,
            method=self._method,
            resource=resources.named(request, response),
            code=code,
            message=said,
            request_id=callers.current().request_id,
            peer=str(self._context.peer()),
        )


def _outcome(error: Exception) -> tuple[str, str]:
    """Return code and message of an error as its caller gets them."""
    if isinstance(error, StillhouseError):
        return code_pb2.Code.Name(error.code), error.message
    return "INTERNAL", type(error).__name__


def _guarded(handler: Any, method: str, *, access: Access) -> Any:
    rule = rule_of(method)
    return handler if rule.scope == PUBLIC else _wrap(handler, method, rule, access)


def _wrap(handler: Any, method: str, rule: Rule, access: Access) -> Any:
    name = f"{_kind(handler.request_streaming)}_{_kind(handler.response_streaming)}"
    inner = getattr(handler, name)
    if handler.request_streaming and not handler.response_streaming:
        wrapped: Any = _stream_in(inner, method, rule, access)
    elif handler.response_streaming:
        wrapped = _stream_out(inner, method, rule, access, reads_all=handler.request_streaming)
    else:
        wrapped = _unary(inner, method, rule, access)
    make = getattr(grpc, f"{name}_rpc_method_handler")
    return make(wrapped, handler.request_deserializer, handler.response_serializer)


def _kind(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _unary(inner: Any, method: str, rule: Rule, access: Access) -> Any:
    async def handle(request: Any, context: Context) -> Any:
        call = _Call(access, method, rule, context)
        await call.identify()
        await call.admit(request)
        if rule.read_only:
            return await inner(request, context)
        return await call.follow(request, inner(request, context))

    return handle


def _stream_out(inner: Any, method: str, rule: Rule, access: Access, *, reads_all: bool) -> Any:
    """Of RPCs with many answers; all of ours change nothing, and those with many requests as well,
    such as reflection, are about no project."""
    if not rule.read_only:
        raise TypeError(f"{method}: no RPC that streams its answers may be a change")

    async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
        call = _Call(access, method, rule, context)
        await call.identify()
        await call.admit(None if reads_all else request)
        async for response in inner(request, context):
            yield response

    return handle


def _stream_in(inner: Any, method: str, rule: Rule, access: Access) -> Any:
    """Of RPCs with many requests, of which the first one names the project."""

    async def handle(requests: AsyncIterator[Any], context: Context) -> Any:
        call = _Call(access, method, rule, context)
        await call.identify()
        first = await anext(aiter(requests), None)
        if first is None:
            raise InvalidInput("the call has no request")
        await call.admit(first)
        own = gate.projects_of(first)
        return await call.follow(first, inner(_same_project(first, requests, own), context))

    return handle


async def _same_project(
    first: Any, rest: AsyncIterator[Any], projects: tuple[str, ...]
) -> AsyncIterator[Any]:
    """Yield requests. Raises InvalidInput for one of another project than the first."""
    yield first
    async for request in rest:
        if not set(gate.projects_of(request)) <= set(projects):
            raise InvalidInput("project: changed within the stream", field="project")
        yield request
