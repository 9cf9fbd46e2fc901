"""Whose a call is: the project of every request of the contract, and ids that stay with a task."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from collections.abc import Iterator

import pytest
import stillhouse
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from services.common import callers
from services.common.callers import Caller, project_of

WITHOUT_PROJECT = {
    *("GetInfo", "GetStats", "ServerLive", "ServerReady", "ServerMetadata"),
    *("CreateSession", "EndSession", "ListProjects"),
}
"""Methods that are about no project."""


def methods() -> Iterator[MethodDescriptor]:
    """Yield every method of the contract."""
    for found in pkgutil.walk_packages(stillhouse.__path__, "stillhouse."):
        if found.name.endswith("_pb2"):
            file = importlib.import_module(found.name).DESCRIPTOR
            for service in file.services_by_name.values():
                yield from service.methods


def fill(message: object, descriptor: object) -> None:
    """Write names of project `p` wherever a request may have one."""
    for field in descriptor.fields:  # type: ignore[attr-defined]
        if field.is_repeated:
            continue
        if field.name == "project" and field.message_type:
            message.project.name = "projects/p"  # type: ignore[attr-defined]
        elif field.name in ("project", "project_id", "repository_name"):
            setattr(message, field.name, "p")
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, "projects/p/models/one")
        elif field.name == "concept_set" and field.message_type:
            getattr(message, field.name).name = "projects/p/conceptSets/one"


@pytest.mark.parametrize("method", list(methods()), ids=lambda one: one.full_name.partition(".")[2])
def test_every_request_tells_its_project(method: MethodDescriptor) -> None:
    request = message_factory.GetMessageClass(method.input_type)()
    assert project_of(request) == ""
    fill(request, method.input_type)
    assert (project_of(request) == "p") != (method.name in WITHOUT_PROJECT)


def test_a_project_that_is_none_is_not_told() -> None:
    from stillhouse.teacher.v1 import teacher_pb2

    for name in ("projects/P/models/m", "projects/a b/models/m", "models/m", "x/projects/p/models"):
        assert project_of(teacher_pb2.GetModelRequest(name=name)) == ""
    assert project_of(teacher_pb2.ListModelsRequest(project="../x")) == ""
    assert project_of(iter(())) == ""


def test_short_names_of_the_open_inference_protocol_tell_their_project() -> None:
    from stillhouse.inference.v2 import open_inference_pb2

    for name, project in {"m": "default", "p/m": "p", "p/students/s": "p", "a/b/c": ""}.items():
        assert project_of(open_inference_pb2.ModelInferRequest(model_name=name)) == project
        assert project_of(open_inference_pb2.ModelReadyRequest(name=name)) == project


async def test_ids_are_on_log_lines_and_go_on_and_leave_with_the_task() -> None:
    async def call(number: int) -> tuple[dict[str, str], dict[str, str], Caller]:
        callers.bind(Caller(f"r{number}", "job-1" if number else "", f"p{number}"))
        await asyncio.sleep(0)
        bound = dict(callers.log_ids(None, "info", {}))
        task = asyncio.get_running_loop().create_task(_now(), context=callers.detached())
        return bound, dict(callers.outgoing()), await task

    async def _now() -> Caller:
        assert not callers.log_ids(None, "info", {})
        return callers.current()

    first, second = await asyncio.gather(call(0), call(1))
    assert first[0] == {"request_id": "r0", "project": "p0"}
    assert second[0] == {"request_id": "r1", "job_id": "job-1", "project": "p1"}
    assert first[1] == {"x-request-id": "r0"}
    assert second[1] == {"x-request-id": "r1", "x-job-id": "job-1"}
    assert first[2] == second[2] == Caller() == callers.current()
