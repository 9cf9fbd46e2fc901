"""Heads that move under a caller, redo, branches and names of versions, over the wire."""

from __future__ import annotations

import asyncio
import uuid

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from stillhouse.gateway.v1 import students_pb2 as pb

from services.common.channels import to_error
from services.common.errors import InvalidInput, NotFound, Precondition
from tests.gateway.student_world import FRUIT, Gateway, refused, up


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of a failed call."""
    status = rpc_status.from_call(error)
    found = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(found)
    return found


def move(version: str, request_id: str = "") -> pb.SetStudentHeadRequest:
    return pb.SetStudentHeadRequest(student=FRUIT, version=version, request_id=request_id)


def rename(version: str, name: str, request_id: str = "") -> pb.RenameStudentVersionRequest:
    return pb.RenameStudentVersionRequest(
        name=f"{FRUIT}/versions/{version}", display_name=name, request_id=request_id
    )


@pytest.mark.parametrize("expected", ["1", f"{FRUIT}/versions/1"])
async def test_a_head_that_moved_is_said_before_any_work(gateway: Gateway, expected: str) -> None:
    request = up()
    request.expected_head = expected
    assert (await gateway.stub.TuneStudent(request)).version.name.endswith("/2")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.TuneStudent(request)
    assert isinstance(to_error(caught.value), Precondition)
    info = info_of(caught.value)
    assert info.reason == "HEAD_MOVED"
    assert dict(info.metadata) == {"head_version": f"{FRUIT}/versions/2"}
    assert len(await gateway.events()) == 2
    branch = up("Pear", "leaf")
    branch.base_version, branch.expected_head = "1", "2"
    made = (await gateway.stub.TuneStudent(branch)).version
    assert made.parent == f"{FRUIT}/versions/1"


async def test_a_repeated_tuning_is_answered_though_its_head_is_past(gateway: Gateway) -> None:
    request = up()
    request.expected_head, request.request_id = "1", str(uuid.uuid4())
    first = await gateway.stub.TuneStudent(request)
    assert await gateway.stub.TuneStudent(request) == first


async def test_of_two_with_one_expectation_one_is_told_the_new_head(gateway: Gateway) -> None:
    requests = [up(), up("Pear", "leaf")]
    for request in requests:
        request.expected_head = "1"
    answers = await asyncio.gather(
        *(gateway.stub.TuneStudent(one) for one in requests), return_exceptions=True
    )
    (failed,) = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert info_of(failed).reason == "HEAD_MOVED"
    assert (await gateway.student()).head_version == f"{FRUIT}/versions/2"


async def test_redo_restores_what_undo_left(gateway: Gateway) -> None:
    tuned = (await gateway.stub.TuneStudent(up())).version
    await gateway.stub.UndoTuning(pb.UndoTuningRequest(student=FRUIT))
    request = move("2", str(uuid.uuid4()))
    moved = (await gateway.stub.SetStudentHead(request)).version
    assert moved.student_ref == tuned.student_ref
    await gateway.stub.UndoTuning(pb.UndoTuningRequest(student=FRUIT))
    assert (await gateway.stub.SetStudentHead(request)).version == moved, "the answer of then"
    assert (await gateway.student()).head_version == f"{FRUIT}/versions/1"
    events = await gateway.events()
    assert [one.kind for one in events] == ["created", "tuned", "undone", "moved", "undone"]
    assert events[3].description == "stillhouse students checkout fruit 2"


async def test_undo_and_redo_of_a_head_that_moved_are_refused(gateway: Gateway) -> None:
    await gateway.stub.TuneStudent(up())
    stale = f"{FRUIT}/versions/1"
    for answer in (
        gateway.stub.UndoTuning(pb.UndoTuningRequest(student=FRUIT, expected_head=stale)),
        gateway.stub.SetStudentHead(
            pb.SetStudentHeadRequest(student=FRUIT, version="1", expected_head=stale)
        ),
    ):
        assert "its head is version 2" in str(await refused(answer))
    assert (await gateway.student()).head_version == f"{FRUIT}/versions/2"
    await gateway.stub.UndoTuning(pb.UndoTuningRequest(student=FRUIT, expected_head="2"))
    assert (await gateway.student()).head_version == stale


async def test_a_version_gets_and_loses_its_name(gateway: Gateway) -> None:
    request = rename("head", "  less stem ", str(uuid.uuid4()))
    named = (await gateway.stub.RenameStudentVersion(request)).version
    assert (named.name, named.display_name) == (f"{FRUIT}/versions/1", "less stem")
    assert (await gateway.version()).display_name == "less stem"
    assert (await gateway.events())[-1].description == (
        'stillhouse students rename fruit 1 "less stem"'
    )
    await gateway.stub.RenameStudentVersion(rename("1", ""))
    assert (await gateway.version()).display_name == ""
    assert (await gateway.stub.RenameStudentVersion(request)).version == named
    assert [one.kind for one in await gateway.events()] == ["created", "renamed", "renamed"]


async def test_names_and_heads_that_are_refused(gateway: Gateway) -> None:
    stub = gateway.stub
    for answer in (
        stub.SetStudentHead(move("")),
        stub.SetStudentHead(move("newest")),
        stub.RenameStudentVersion(rename("1", "x" * 101)),
        stub.RenameStudentVersion(rename("1", "two\nlines")),
        stub.TuneStudent(pb.TuneStudentRequest(student=FRUIT, expected_head="newest")),
    ):
        assert isinstance(await refused(answer), InvalidInput)
    for answer in (stub.SetStudentHead(move("9")), stub.RenameStudentVersion(rename("9", "x"))):
        assert isinstance(await refused(answer), NotFound)
    assert len(await gateway.events()) == 1
