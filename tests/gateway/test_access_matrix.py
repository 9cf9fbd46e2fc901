"""Every RPC and every HTTP route, asked by every kind of caller.

The RPCs are those that the running gateway itself lists, the routes those of its application, so
that a new one cannot be forgotten: it is asked as well, and without a rule it is for admins alone.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import httpx2
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from stillhouse.common.v1 import access_pb2

from services.gateway.access.rules import CALLER, INSTALLATION, PUBLIC, Rule, rule_of
from services.gateway.http.app import make_app
from services.gateway.http.rules import load_rules
from services.gateway.settings import GatewaySettings
from tests.gateway.access_world import CALLERS, OTHER, PROJECT, REFUSED, AccessWorld, access_world

ROLES = {
    "viewer": access_pb2.ROLE_VIEWER,
    "tuner": access_pb2.ROLE_TUNER,
    "runner": access_pb2.ROLE_RUNNER,
    "admin": access_pb2.ROLE_ADMIN,
}
IDS = {
    "apiKeys": "kspare0000",
    "datasets": "pics",
    "distillationJobs": "job-1",
    "encoders": "effl2-minilm",
    "models": "m1",
    "students": "fruit",
    "versions": "1",
}
"""What there is, by collection."""
ALLOWED = "allowed"
MISSING = {
    "Health.List": "UNIMPLEMENTED",
    "GRPCInferenceService.RepositoryModelUnload": "UNIMPLEMENTED",
}
"""What those who may call get of what nobody serves: gRPC's health servicer cannot list, and a
student is not put out of memory by itself."""
LET_IN = {"OK", "200", "204"} | {
    *("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAVAILABLE"),
    *("400", "503"),
}
"""What those who may call get otherwise: requests say little, and the services are away."""
AT_ONCE = 16
ROUTES = {
    "/openapi.json": {"GET": Rule(scope=PUBLIC)},
    "/v1/info": {"GET": Rule(scope=PUBLIC)},
    "/v1/session": {"POST": Rule(scope=CALLER), "DELETE": Rule(scope=CALLER)},
    "/v1/projects/{project}/archives": {"POST": Rule(access_pb2.ROLE_RUNNER)},
    "/v1/projects/{project}/images/{digest}": {"GET": Rule(access_pb2.ROLE_VIEWER)},
    "/v1/{rest:path}": {},
    "/{rest:path}": {"GET": Rule(scope=PUBLIC)},
}
"""Routes that are not RPCs with an annotation; the last but one serves all that are."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessWorld]:
    with access_world(tmp_path_factory.mktemp("access")) as running:
        yield running


def expected(rule: Rule, caller: str, *, names_project: bool) -> str:
    """Return the code that a caller must get, or ALLOWED."""
    if rule.scope == PUBLIC:
        return ALLOWED
    if caller in REFUSED:
        return "UNAUTHENTICATED"
    if rule.scope == CALLER or caller == "everywhere":
        return ALLOWED
    if caller not in ROLES and names_project:
        return "NOT_FOUND"
    if rule.scope == INSTALLATION or ROLES[caller] < rule.role:
        return "PERMISSION_DENIED"
    return ALLOWED


def check(what: str, caller: str, code: str, wanted: str) -> str:
    """Return what is wrong with an outcome; empty where nothing is."""
    if wanted == ALLOWED:
        wanted = next((code for rpc, code in MISSING.items() if what.endswith(rpc)), ALLOWED)
    good = code in LET_IN if wanted == ALLOWED else code == wanted
    return "" if good else f"{what} by {caller}: {code} instead of {wanted}"


def templates() -> dict[str, str]:
    """Return the form of the name that an RPC takes, by RPC and field."""
    return {
        f"{rule.rpc}.{variable.field}": variable.pattern
        for rule in load_rules()
        for variable in rule.variables
    }


TEMPLATES = templates()


def name_of(pattern: str) -> str:
    """Fill a pattern with what there is: `projects/*/datasets/*`."""
    parts = pattern.split("/")
    for at in range(1, len(parts)):
        if parts[at] == "*":
            parts[at] = PROJECT if parts[at - 1] == "projects" else IDS[parts[at - 1]]
    return "/".join(parts)


def request_of(method: MethodDescriptor, world: AccessWorld) -> Message:
    """Return a request about what there is in the project; nothing else of it is valid."""
    request = message_factory.GetMessageClass(method.input_type)()
    path = f"/{method.containing_service.full_name}/{method.name}"
    open_inference = method.full_name.startswith("inference.")
    for field in method.input_type.fields:
        pattern = TEMPLATES.get(f"{path}.{field.name}", "")
        if field.name == "project" and field.message_type:
            request.project.name = f"projects/{PROJECT}"  # type: ignore[attr-defined]
        elif field.name in ("project", "repository_name") and method.name != "WhoAmI":
            setattr(request, field.name, PROJECT)
        elif open_inference and field.name in ("name", "model_name"):
            setattr(request, field.name, f"{PROJECT}/students/fruit")
        elif "/" in pattern:
            setattr(request, field.name, name_of(pattern))
        elif field.name == "digest":
            setattr(request, field.name, world.digest)
        elif field.name == "chunk":
            setattr(request, field.name, b"no archive")
    return request


def names_project(request: Message) -> bool:
    return PROJECT in str(request)


async def services_of(world: AccessWorld) -> list[str]:
    """Return the services that the gateway itself lists."""
    async with grpc.aio.insecure_channel(world.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([asked]), metadata=world.metadata("everywhere"))
        answer = await call.read()
        call.cancel()
    return [one.name for one in answer.list_services_response.service]


def methods_of(services: list[str]) -> list[MethodDescriptor]:
    pool = descriptor_pool.Default()
    return [method for name in services for method in pool.FindServiceByName(name).methods]


async def call(channel: Any, method: MethodDescriptor, request: Message, metadata: Any) -> str:
    """Call an RPC of any kind; return the code of its first answer."""
    kinds = {True: "stream", False: "unary"}
    kind = f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}"
    answer = message_factory.GetMessageClass(method.output_type)
    made = getattr(channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    given = iter([request]) if method.client_streaming else request
    running = made(given, metadata=metadata, timeout=100)
    try:
        await (running.read() if method.server_streaming else running)
        if method.server_streaming and running.done():
            return str((await running.code()).name)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    finally:
        running.cancel()
    return "OK"


async def test_every_rpc(world: AccessWorld) -> None:
    services = await services_of(world)
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
    wrong: list[str] = []
    turns = asyncio.Semaphore(AT_ONCE)
    async with grpc.aio.insecure_channel(world.address) as channel:

        async def ask(method: MethodDescriptor, caller: str) -> None:
            rule = rule_of(f"{method.containing_service.full_name}/{method.name}")
            request = request_of(method, world)
            async with turns:
                code = await call(channel, method, request, world.metadata(caller))
                if code == "INTERNAL" and method.client_streaming:
                    # A refusal that crosses a request on its way can end the stream without words.
                    code = await call(channel, method, request, world.metadata(caller))
            wanted = expected(rule, caller, names_project=names_project(request))
            wrong.append(check(method.full_name, caller, code, wanted))

        for caller in CALLERS:
            await asyncio.gather(*(ask(method, caller) for method in methods_of(services)))
    assert len(wrong) > 500
    assert "\n".join(filter(None, wrong)) == ""


async def test_every_rpc_of_ours_says_who_may_call_it(world: AccessWorld) -> None:
    ours = [one for one in await services_of(world) if one.startswith("stillhouse.")]
    without = [
        method.full_name
        for method in methods_of(ours)
        if not method.GetOptions().HasExtension(access_pb2.access)
    ]
    assert without == []


def test_without_a_rule_an_rpc_is_for_admins_and_a_change() -> None:
    assert rule_of("stillhouse.gateway.v1.NewService/NewMethod") == Rule(access_pb2.ROLE_ADMIN)
    assert rule_of("inference.GRPCInferenceService/NewMethod") == Rule(access_pb2.ROLE_ADMIN)


def http_cases(world: AccessWorld) -> Iterator[tuple[str, str, Rule]]:
    """Yield verb, path and rule of every route: those of the contract, then the others."""
    for rule in load_rules():
        path = re.sub(
            r"\{([\w.]+)(?:=([^}]+))?\}",
            lambda found: name_of(found[2]) if found[2] else _value(found[1], world),
            rule.template,
        )
        yield rule.verb, path, rule_of(rule.rpc.removeprefix("/"))
    for path, verbs in ROUTES.items():
        for verb, needed in verbs.items():
            filled = path.replace("{project}", PROJECT).replace("{digest}", world.digest)
            yield verb, filled.replace("{rest:path}", ""), needed


def _value(field: str, world: AccessWorld) -> str:
    return world.digest if field == "digest" else PROJECT


HTTP = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 501: "UNIMPLEMENTED"}


async def first_event(answer: httpx2.Response) -> str:
    """Return the code of a stream's first event: a refusal that comes late is an event."""
    is_error = False
    async for line in answer.aiter_lines():
        is_error = is_error or line == "event: error"
        if line.startswith("data: "):
            number = json.loads(line.removeprefix("data: ")).get("code", 0) if is_error else 0
            return str(code_pb2.Code.Name(number))
    return "OK"


async def test_every_http_route(world: AccessWorld) -> None:
    wrong: list[str] = []
    turns = asyncio.Semaphore(AT_ONCE)
    async with httpx2.AsyncClient(base_url=world.http, trust_env=False, timeout=30) as http:

        async def ask(verb: str, path: str, rule: Rule, caller: str) -> None:
            body = {"content": b"no archive"} if path.endswith("/archives") else {}
            headers = world.headers(caller)
            async with turns, http.stream(verb, path, headers=headers, **body) as answer:
                code = HTTP.get(answer.status_code, str(answer.status_code))
                if answer.headers.get("content-type", "").startswith("text/event-stream"):
                    code = await first_event(answer)
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"
            wanted = expected(rule, caller, names_project=PROJECT in path)
            wrong.append(check(f"{verb} {path}", caller, code, wanted))

        for caller in CALLERS:
            cases = http_cases(world)
            await asyncio.gather(*(ask(*case, caller) for case in cases))
    assert len(wrong) > 400
    assert "\n".join(filter(None, wrong)) == ""


async def test_no_route_is_unknown_to_this_test() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:9") as channel:
        app: Any = make_app(GatewaySettings(), channel)
    assert {route.path for route in app._app.routes} == set(ROUTES)


async def test_what_is_anothers_reads_as_what_is_not_there(world: AccessWorld) -> None:
    async with grpc.aio.insecure_channel(world.address) as channel:
        for name in ("datasets", "students", "distillationJobs"):
            method = {
                "datasets": "DatasetService.GetDataset",
                "students": "StudentsService.GetStudent",
                "distillationJobs": "DistillationService.GetDistillationJob",
            }[name]
            found = descriptor_pool.Default().FindMethodByName(f"stillhouse.gateway.v1.{method}")
            nothing = "x" * len(IDS[name])  # as long: details hold lengths
            theirs, missing = (
                f"projects/{PROJECT}/{name}/{IDS[name]}",
                f"projects/{OTHER}/{name}/{nothing}",
            )
            said = [
                await words(channel, found, one, world.metadata("other project's"))
                for one in (theirs, f"projects/{PROJECT}/{name}/{nothing}", missing)
            ]
            assert said[0] == said[2].replace(missing, theirs)
            assert said[1] == said[2].replace(f"projects/{OTHER}", f"projects/{PROJECT}")


async def words(channel: Any, method: MethodDescriptor, name: str, metadata: Any) -> str:
    """Return all that a refusal says."""
    request = message_factory.GetMessageClass(method.input_type)(name=name)
    made = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=bytes,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await made(request, metadata=metadata)
    return str(rpc_status.from_call(caught.value))
