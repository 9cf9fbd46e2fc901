"""HTTP rules and requests: templates, query parameters and bodies, without a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stillhouse.gateway.v1 import jobs_pb2, students_pb2

from services.common.errors import InvalidInput
from services.gateway.http import payloads
from services.gateway.http.openapi import expand
from services.gateway.http.rules import Rule, Rules

RULES = Rules()


def find(verb: str, path: str) -> tuple[Rule, dict[str, str]]:
    found = RULES.find(verb, path)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("verb", "path", "name", "fields"),
    [
        ("GET", "/v1/projects/p/students", "ListStudents", {"project": "p"}),
        ("GET", "/v1/projects/p/students/s", "GetStudent", {"name": "projects/p/students/s"}),
        (
            "POST",
            "/v1/projects/p/students/s/versions/3:rename",
            "RenameStudentVersion",
            {"name": "projects/p/students/s/versions/3"},
        ),
        (
            "POST",
            "/v1/projects/p/distillationJobs:estimate",
            "EstimateDistillationJob",
            {"project": "p"},
        ),
        (
            "GET",
            "/v1/projects/p/blobs/abc",
            "ReadBlob",
            {"project": "p", "digest": "abc"},
        ),
    ],
)
def test_a_path_means_one_rpc(verb: str, path: str, name: str, fields: dict[str, str]) -> None:
    rule, given = find(verb, path)
    assert rule.method.name == name
    assert given == fields


@pytest.mark.parametrize(
    "path", ["/v1/projects/p/students/", "/v1/projects//students", "/v1/projects/p/students/s:no"]
)
def test_other_paths_mean_none(path: str) -> None:
    assert RULES.find("GET", path) is None
    assert not RULES.verbs(path)


def test_another_verb_is_told_apart_from_no_path() -> None:
    assert RULES.find("PUT", "/v1/projects/p/datasets") is None
    assert RULES.verbs("/v1/projects/p/datasets") == ["GET", "POST"]


def test_the_readme_names_paths_that_exist() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    paths = re.findall(r'curl [^\n]*\$api(/[^\s"?]*)', text)
    assert len(paths) >= 5
    for path in paths:
        known = path.startswith(("/archives", "/images/"))
        assert known or RULES.verbs(f"/v1/projects/default{path}"), path


def test_wildcards_become_parameters() -> None:
    template = "/v1/{student=projects/*/students/*}:tune"
    assert expand(template) == "/v1/projects/{project}/students/{student}:tune"
    assert expand("/v1/projects/{project}/students") == "/v1/projects/{project}/students"


async def test_query_parameters_fill_fields_by_either_name() -> None:
    rule, fields = find("GET", "/v1/projects/p/students/s/conceptExamples")
    query = [("concepts", "red skin"), ("concepts", "leaf"), ("pageSize", "7"), ("label", "Pear")]
    expected = students_pb2.ListConceptExamplesRequest(
        student="projects/p/students/s", concepts=["red skin", "leaf"], page_size=7, label="Pear"
    )
    assert await payloads.to_request(rule, fields, query, b"") == expected
    query[2] = ("page_size", "7")
    assert await payloads.to_request(rule, fields, query, b"") == expected


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ([("colour", "red")], "colour"),
        ([("pageSize", "7"), ("page_size", "8")], "page_size"),
        ([("pageSize.x", "7")], "pageSize.x"),
        ([("student", "projects/p/students/other")], "student"),
        ([("pageSize", "many")], ""),
        ([("pageSize", "99999999999")], ""),
    ],
)
async def test_a_wrong_query_is_refused(query: list[tuple[str, str]], field: str) -> None:
    rule, fields = find("GET", "/v1/projects/p/students/s/conceptExamples")
    with pytest.raises(InvalidInput) as refused:
        await payloads.to_request(rule, fields, query, b"")
    assert refused.value.field == field


async def test_a_body_is_proto3_json() -> None:
    rule, fields = find("POST", "/v1/projects/p/distillationJobs")
    body = b'{"job": {"concept": {"dataset": "d", "nec": 20, "seed": "9007199254740993"}}}'
    request = await payloads.to_request(rule, fields, [], body)
    assert isinstance(request, jobs_pb2.CreateDistillationJobRequest)
    assert request.project == "p"
    assert request.job.concept.seed == 9007199254740993


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"jobs": {}}',
        b'{"project": "other"}',
        b'{"job": 5}',
        b'{"requestId": 5}',
        b"[" * 100_000,
        b'{"job": ' * 5_000,
    ],
)
async def test_a_wrong_body_is_refused(body: bytes) -> None:
    rule, fields = find("POST", "/v1/projects/p/distillationJobs")
    with pytest.raises(InvalidInput):
        await payloads.to_request(rule, fields, [], body)


async def test_a_body_takes_no_query_and_a_query_no_body() -> None:
    rule, fields = find("POST", "/v1/projects/p/distillationJobs")
    with pytest.raises(InvalidInput):
        await payloads.to_request(rule, fields, [("requestId", "x")], b"{}")
    rule, fields = find("GET", "/v1/projects/p/students")
    with pytest.raises(InvalidInput):
        await payloads.to_request(rule, fields, [], b"{}")
