"""The HTTP edge beside gRPC: the same answers and errors, and who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx2
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from openapi_spec_validator import validate
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.routing import Route
from stillhouse.gateway.v1 import datasets_pb2, datasets_pb2_grpc, students_pb2, students_pb2_grpc

from services.gateway import students
from services.gateway.http import pages
from services.gateway.http.edge import Edge, _listen
from services.gateway.http.rules import load_rules
from services.gateway.settings import GatewaySettings
from tests.gateway.edge_world import JSON, ROOT, World, as_json, edge_world
from tests.gateway.student_world import made

DATASET = "projects/default/datasets/pics"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with edge_world(tmp_path) as running:
        yield running


async def test_datasets_are_the_same_both_ways(world: World) -> None:
    await world.add_dataset()
    stub = datasets_pb2_grpc.DatasetServiceStub(world.channel)
    got = await stub.GetDataset(datasets_pb2.GetDatasetRequest(name=DATASET))
    answer = await world.get("/datasets/pics")
    assert answer.json() == as_json(got)
    assert answer.json()["dataset"]["splitCounts"]["test"] > 0

    request = datasets_pb2.ListDatasetItemsRequest(dataset=DATASET, split="train", page_size=2)
    first = await stub.ListDatasetItems(request)
    answer = await world.get("/datasets/pics/items", split="train", pageSize=2)
    assert answer.json() == as_json(first)
    answer = await world.get("/datasets/pics/items", pageSize=1000)
    assert "a/<img src=x>.jpg" in [item["itemId"] for item in answer.json()["items"]]
    assert answer.headers["content-type"] == "application/json"


def reflected(address: str) -> object:
    """Ask for a dataset as a tool does that knows the contract by reflection alone."""
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("stillhouse.gateway.v1.DatasetService")
        method = service.FindMethodByName("GetDataset")
        asked = message_factory.GetMessageClass(method.input_type)(name=DATASET)
        answer = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=type(asked).SerializeToString,
            response_deserializer=answer.FromString,
        )
        found = call(asked, timeout=10)
    return json_format.MessageToDict(
        found, always_print_fields_with_no_presence=True, descriptor_pool=pool
    )


async def test_reflection_and_json_give_the_same_answer(world: World) -> None:
    await world.add_dataset()
    by_reflection = await asyncio.to_thread(reflected, world.address)
    assert (await world.get("/datasets/pics")).json() == by_reflection


async def test_students_are_the_same_both_ways(world: World) -> None:
    await asyncio.to_thread(students.publish, world.gateway.store, "default", "fruit", made())
    stub = students_pb2_grpc.StudentsServiceStub(world.channel)
    name = "projects/default/students/fruit"
    got = await stub.GetStudent(students_pb2.GetStudentRequest(name=name))
    assert (await world.get("/students/fruit")).json() == as_json(got)
    events = await stub.ListStudentEvents(students_pb2.ListStudentEventsRequest(student=name))
    assert (await world.get("/students/fruit/events")).json() == as_json(events)
    listed = await stub.ListStudents(students_pb2.ListStudentsRequest(project="default"))
    assert (await world.get("/students")).json() == as_json(listed)


ERRORS = [
    ("/students/none", 404, 5, "NOT_FOUND"),
    ("/students/No", 400, 3, "INVALID_INPUT"),
    ("/students?pageSize=-1", 400, 3, "INVALID_INPUT"),
    ("/students?colour=red", 400, 3, "INVALID_INPUT"),
    ("/models", 503, 14, "UNAVAILABLE"),
    ("/nothing", 404, 5, "NOT_FOUND"),
    (f"/blobs/{'0' * 64}", 404, 5, "NOT_FOUND"),
    ("/blobs/short", 400, 3, "INVALID_INPUT"),
]


async def test_errors_are_statuses(world: World) -> None:
    for path, code, status, reason in ERRORS:
        answer = await world.http.get(ROOT + path)
        assert answer.status_code == code, path
        said = answer.json()
        assert said["code"] == status
        assert said["message"]
        assert said["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
        assert said["details"][0]["reason"] == reason
        assert ("retry-after" in answer.headers) == (code == 503)


async def test_a_conflict_is_409(world: World) -> None:
    await world.add_dataset()
    answer = await world.post("/datasets", {"datasetId": "pics", "uri": "builtin:fruit-fine"})
    assert answer.status_code == 409
    assert answer.json()["details"][1]["resourceName"] == DATASET


async def test_a_caller_that_leaves_ends_the_call(tmp_path: Path) -> None:
    open_ends: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ends.append(writer)
        await reader.read()

    def cancelled() -> float:
        method = "stillhouse.gateway.v1.ModelService/ListTeachers"
        labels = {"grpc_method": method, "grpc_status": "CANCELLED"}
        name = "grpc_server_call_duration_seconds_count"
        return REGISTRY.get_sample_value(name, labels) or 0.0

    teacher = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = f"127.0.0.1:{teacher.sockets[0].getsockname()[1]}"
    before = cancelled()
    async with edge_world(tmp_path, teacher_address=address) as world:
        asking = asyncio.create_task(world.get("/models"))
        await asyncio.sleep(0.3)
        asking.cancel()
        async with asyncio.timeout(10):
            while cancelled() == before:
                await asyncio.sleep(0.02)
    teacher.close()
    for writer in open_ends:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_wrong_verbs_and_types_are_told(world: World) -> None:
    answer = await world.http.delete(f"{ROOT}/datasets")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await world.http.post(f"{ROOT}/datasets", content="a=b", headers=form)
    assert answer.status_code == 415
    answer = await world.http.post("/", content="a=b")
    assert answer.status_code == 405


async def test_a_body_over_the_limit_is_413(tmp_path: Path) -> None:
    async with edge_world(tmp_path, max_message_bytes=1 << 20) as world:
        answer = await world.post("/datasets", {"datasetId": "x" * (1 << 20)})
        assert answer.status_code == 413
        assert "1,048,576" in answer.json()["message"]


async def test_only_loopback_names_are_answered(world: World) -> None:
    """Nothing that a page of another site can make its own name resolve to."""
    for host in ("localhost:7180", "127.0.0.1", "[::1]:7180", "127.0.0.1:80", "LOCALHOST"):
        answer = await world.http.get(f"{ROOT}/students", headers={"Host": host})
        assert answer.status_code == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil", "10.0.0.1", "[x"):
        for path in ("/", f"{ROOT}/students", "/openapi.json"):
            answer = await world.http.get(path, headers={"Host": host})
            assert answer.status_code == 403
            assert answer.json()["details"][0]["reason"] == "HOST_NOT_ALLOWED"


async def test_a_name_can_be_allowed(tmp_path: Path) -> None:
    async with edge_world(tmp_path, allowed_hosts=("lab.example",)) as world:
        for host, code in (("lab.example:7180", 200), ("127.0.0.1", 200), ("evil.example", 403)):
            answer = await world.http.get(f"{ROOT}/students", headers={"Host": host})
            assert answer.status_code == code


async def test_on_a_network_every_name_is_answered_until_some_are_allowed(tmp_path: Path) -> None:
    async with edge_world(tmp_path, http_host="0.0.0.0") as world:
        for host in ("lab.example", "10.0.0.1:7180", "[x"):
            answer = await world.http.get(f"{ROOT}/students", headers={"Host": host})
            assert answer.status_code == 200


async def test_pages_of_other_sites_change_nothing(world: World) -> None:
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for path in ("/datasets", "/archives", "/students/s:undo"):
            answer = await world.http.post(ROOT + path, content=b"", headers=headers)
            assert answer.status_code == 403
            assert answer.json()["details"][0]["reason"] == "CROSS_SITE"


async def test_own_pages_may(world: World) -> None:
    own = {"Origin": f"http://127.0.0.1:{world.edge.port}", "Sec-Fetch-Site": "same-origin"}
    answer = await world.http.post(f"{ROOT}/students/none:undo", headers=own)
    assert answer.status_code == 404


async def test_every_answer_is_guarded(world: World) -> None:
    for path in ("/", "/nothing", "/openapi.json", f"{ROOT}/students", f"{ROOT}/students/none"):
        answer = await world.http.get(path, headers={"X-Request-Id": "abc"})
        assert "script" not in answer.headers["content-security-policy"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-request-id"] == "abc"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    answer = await world.http.get("/", headers={"X-Request-Id": "no good"})
    assert answer.headers["x-request-id"] != "no good"


async def test_a_header_that_grpc_cannot_carry_is_refused(world: World) -> None:
    headers = {"Authorization": "Bearer \u00e9".encode("latin-1")}
    answer = await world.http.get(f"{ROOT}/students", headers=headers)
    assert answer.status_code == 400


async def test_the_openapi_document_is_valid_and_complete(world: World) -> None:
    document = (await world.http.get("/openapi.json")).json()
    validate(document)
    assert document["openapi"].startswith("3.1")
    names = {op["operationId"] for item in document["paths"].values() for op in item.values()}
    assert names >= {rule.method.name for rule in load_rules()}
    assert {"UploadArchive", "GetThumbnail", "GetInfo"} <= names
    tune = document["paths"]["/v1/projects/{project}/students/{student}:tune"]["post"]
    assert [p["name"] for p in tune["parameters"]] == ["project", "student"]
    assert tune["description"].startswith("Applies concept edits")
    request = document["components"]["schemas"]["TuneStudentRequest"]
    assert "student" not in request["properties"]
    assert request["required"] == ["edits"]
    blob = document["components"]["schemas"]["BlobRef"]["properties"]
    assert (blob["sizeBytes"]["type"], blob["digest"]["type"]) == ("string", "string")


async def test_answers_fit_the_document(world: World) -> None:
    await world.add_dataset()
    schemas = (await world.http.get("/openapi.json")).json()["components"]["schemas"]
    found = (await world.get("/datasets/pics")).json()["dataset"]
    assert (
        set(schemas["Dataset"]["required"]) <= set(found) <= set(schemas["Dataset"]["properties"])
    )
    error = (await world.get("/datasets/none")).json()
    assert set(error) == set(schemas["Status"]["properties"])


async def test_info_says_the_limits(world: World) -> None:
    found = (await world.http.get("/v1/info")).json()
    assert found["service"] == "gateway"
    assert int(found["maxArchiveBytes"]) > 0
    assert int(found["limits"]["maxImageBytes"]) > 0
    assert found["credentials"] == ["CREDENTIAL_KIND_NONE"]
    answer = (await world.http.get("/openapi.json")).json()["paths"]["/v1/info"]["get"]
    content = answer["responses"]["200"]["content"]["application/json"]["schema"]["allOf"]
    assert set(content[1]["properties"]) <= set(found)


async def test_pages_are_served_with_their_headers(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("no")
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>hello")
    (folder / "assets" / "app-1.js").write_text("x=1;" * 500)
    app = pages_app(folder)
    async with httpx2.AsyncClient(transport=app, base_url="http://localhost") as http:
        index = await http.get("/")
        assert (index.status_code, index.headers["cache-control"]) == (200, "no-cache")
        again = await http.get("/", headers={"If-None-Match": index.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        script = await http.get("/assets/app-1.js")
        assert "immutable" in script.headers["cache-control"]
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert script.headers["content-encoding"] == "gzip"
        assert script.text == "x=1;" * 500
        for path in ("/../secret", "/%2e%2e/secret", "/assets", "/none", "/assets/%00"):
            assert (await http.get(path)).status_code == 404
        (folder / "index.html").write_text("<!doctype html>newer text")
        assert (await http.get("/")).text.endswith("newer text")
        (folder / "index.html").unlink()
        missing = await http.get("/")
        assert missing.status_code == 503
        assert "make web" in missing.text


def pages_app(folder: Path) -> httpx2.ASGITransport:
    routes = [Route("/{rest:path}", pages.Pages(folder).__call__)]
    return httpx2.ASGITransport(app=Starlette(routes=routes))


async def test_a_second_edge_on_the_port_says_so(world: World, tmp_path: Path) -> None:
    second = Edge(GatewaySettings(http_port=world.edge.port))
    with pytest.raises(OSError, match=f"HTTP port {world.edge.port}"):
        await second.start()
    off = Edge(GatewaySettings(http_port=-1))
    await off.start()
    assert off.port == -1
    await off.stop()


def test_small_answers_are_not_held_back() -> None:
    """asyncio turns Nagle's delay off only for sockets made with their protocol."""
    with _listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


async def test_json_is_utf8_and_one_line(world: World) -> None:
    answer = await world.post("/datasets", {"datasetId": "é\n<b>", "uri": "builtin:x"})
    assert answer.status_code == 400
    assert answer.content.count(b"\n") == 0
    assert json.loads(answer.content.decode("utf-8"))["code"] == 3


@pytest.mark.parametrize("body", [b'{"ownLimits": "\\ud800"}', b'{"\\ud800": 1}'])
async def test_half_a_surrogate_is_no_name(world: World, body: bytes) -> None:
    answer = await world.http.post(f"{ROOT}/quota:update", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["details"][0]["reason"] == "INVALID_INPUT"
