"""What project B gets where it names what is A's: nothing, and no sign that it is there.

The table is checked against the contract's descriptors: an RPC without an entry fails the test.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import (
    access_pb2,
    datasets_pb2,
    jobs_pb2,
    models_pb2,
    projects_pb2,
    students_pb2,
)

from services.common.blobs import BlobStore
from services.gateway import students
from services.gateway.jobs import records as jobs
from services.gateway.keys import ImageSpace, RegionSpace, image_key, project_patterns, region_key
from tests.gateway.edge_world import World, edge_world, make_archive
from tests.gateway.student_world import made

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILES = (access_pb2, datasets_pb2, jobs_pb2, models_pb2, projects_pb2, students_pb2)
GONE = {"NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}


@dataclass(frozen=True)
class Owned:
    """What is A's: digests, and ids of a dataset, a job, a student and a model."""

    world: World
    archive: str
    blob: str
    dataset: str
    job: str
    student: str
    model: str


Ask = Callable[[Owned], Any]
JOBS: dict[str, dict[str, str]] = {
    "concept": {"dataset": "datasets", "teacher": "models", "encoder": "encoders"},
    "teacher_head": {"dataset": "datasets", "backbone": "models"},
    "language": {"dataset": "datasets", "teacher": "models", "student": "models"},
    "tuneshift": {"base": "models", "tuned": "models", "target": "models"},
    "prune": {"dataset": "datasets", "model": "models"},
    "classifier": {"dataset": "datasets", "teacher": "models"},
}
"""Fields of specifications that name something, and what."""


def job_of(owned: Owned, kind: str, foreign: str) -> jobs_pb2.DistillationJob:
    """A job of B all of whose names are its own, but one."""
    ids = {"datasets": owned.dataset, "models": owned.model, "encoders": "effl2-minilm"}
    fields = {
        field: f"projects/{'a' if field == foreign else 'b'}/{what}/{ids[what]}"
        for field, what in JOBS[kind].items()
    }
    spec = jobs_pb2.DistillationJob()
    getattr(spec, kind).SetInParent()
    for field, name in fields.items():
        setattr(getattr(spec, kind), field, name)
    return spec


def jobs_with(request: type[Any]) -> list[Ask]:
    """A request for every field of every specification, which names A's there."""
    return [
        lambda o, kind=kind, field=field: request(project="b", job=job_of(o, kind, field))  # type: ignore[misc]
        for kind, fields in JOBS.items()
        for field in fields
    ]


ASKED: dict[str, list[Ask]] = {
    "CreateDataset": [
        lambda o: datasets_pb2.CreateDatasetRequest(
            project="b", dataset_id="mine", archive=items_pb2.BlobRef(digest=o.archive)
        ),
        lambda o: datasets_pb2.CreateDatasetRequest(
            project="b", dataset_id="mine", uri=f"{o.world.gateway.settings.blob_url}/projects/a"
        ),
    ],
    "CorrectLabels": [
        lambda o: datasets_pb2.CorrectLabelsRequest(
            dataset=f"projects/b/datasets/{o.dataset}", dataset_id="mine"
        )
    ],
    "GetDataset": [
        lambda o: datasets_pb2.GetDatasetRequest(name=f"projects/b/datasets/{o.dataset}")
    ],
    "ListDatasetItems": [
        lambda o: datasets_pb2.ListDatasetItemsRequest(dataset=f"projects/b/datasets/{o.dataset}")
    ],
    "CreateDistillationJob": jobs_with(jobs_pb2.CreateDistillationJobRequest),
    "EstimateDistillationJob": jobs_with(jobs_pb2.EstimateDistillationJobRequest),
    **{
        name: [
            lambda o, kind=kind: kind(name=f"projects/b/distillationJobs/{o.job}")  # type: ignore[misc]
        ]
        for name, kind in (
            ("GetDistillationJob", jobs_pb2.GetDistillationJobRequest),
            ("CancelDistillationJob", jobs_pb2.CancelDistillationJobRequest),
            ("WatchDistillationJob", jobs_pb2.WatchDistillationJobRequest),
        )
    },
    **{
        name: [
            lambda o, kind=kind: kind(job=f"projects/b/distillationJobs/{o.job}")  # type: ignore[misc]
        ]
        for name, kind in (
            ("ListJobSamples", jobs_pb2.ListJobSamplesRequest),
            ("ReviewJobSamples", jobs_pb2.ReviewJobSamplesRequest),
        )
    },
    "GetProject": [lambda o: projects_pb2.GetProjectRequest(name="projects/b")],
    "UpdateProject": [
        lambda o: projects_pb2.UpdateProjectRequest(project=projects_pb2.Project(name="projects/b"))
    ],
    "DeleteProject": [lambda o: projects_pb2.DeleteProjectRequest(name="projects/b")],
    "GetProjectDeletion": [
        lambda o: projects_pb2.GetProjectDeletionRequest(name="projects/b/deletion")
    ],
    "ReadBlob": [
        lambda o: students_pb2.ReadBlobRequest(project="b", digest=o.blob),
        lambda o: students_pb2.ReadBlobRequest(project="b/../a", digest=o.blob),
        lambda o: students_pb2.ReadBlobRequest(project="b", digest=f"../../../a/blobs/{o.blob}"),
    ],
}
"""Requests of B for what is A's, each of which must end in one of GONE."""
BY_NAME = (
    "GetStudent",
    "ListStudentVersions",
    "ListStudentEvents",
    "UndoTuning",
    "TuneStudent",
    "SetStudentHead",
    "GetStudentVersion",
    "RenameStudentVersion",
    "EvaluateStudentVersion",
    "InspectStudentVersion",
    "CompareStudentVersions",
    "PromoteStudentVersion",
    "PredictImages",
    "ExplainImages",
    "ListConceptExamples",
    "ExportStudent",
)
"""RPCs that name a student, or a version of one, in the first of _NAMES that they have."""
_NAMES = ("name", "student", "version", "base")
LISTS = {
    "ListDatasets": datasets_pb2.ListDatasetsRequest(project="b"),
    "ListDistillationJobs": jobs_pb2.ListDistillationJobsRequest(project="b"),
    "ListStudents": students_pb2.ListStudentsRequest(project="b"),
}
"""Lists of B's own, which must be empty."""
ELSEWHERE = {
    "UploadArchive": "stores bytes of the caller's own, by project",
    "CreateProject": "makes a project; of one that there is it says so, to whoever may create any",
    "ListProjects": "is for those who may see all projects",
    "ListTeachers": "passed on with the project, by which the services keep what they have",
    "GetTeacher": "the same",
    "GenerateText": "the same",
    "ListProjectEncoders": "the same",
    "EmbedProjectImages": "the same",
    "ListProjectConceptSets": "the same",
    "CreateProjectConceptSet": "the same",
    **dict.fromkeys(
        (
            *("CreateApiKey", "ListApiKeys", "RevokeApiKey", "WhoAmI", "CreateSession"),
            *("EndSession", "ListAuditEntries", "GetQuota", "UpdateQuota"),
        ),
        "asked with another project's key in test_access_matrix.py",
    ),
}
"""RPCs that reach nothing of a project here, and why."""


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC of the gateway."""
    services = [one for file in FILES for one in file.DESCRIPTOR.services_by_name.values()]
    return {method.name: method for service in services for method in service.methods}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owned(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owned]:
    """A gateway with things of A, and B that has nothing."""
    folder = tmp_path_factory.mktemp("isolation")
    async with edge_world(folder) as world:
        answer = await world.http.post("/v1/projects/a/archives", content=make_archive())
        archive = answer.json()["archive"]["digest"]
        body = json.dumps({"datasetId": "secret", "archive": {"digest": archive}})
        json_type = {"content-type": "application/json"}
        await world.http.post("/v1/projects/a/datasets", content=body, headers=json_type)
        while True:
            found = (await world.http.get("/v1/projects/a/datasets/secret")).json()["dataset"]
            if found["state"] != "DATASET_STATE_CREATING":
                break
        items = (await world.http.get("/v1/projects/a/datasets/secret/items")).json()["items"]
        store, blobs = world.gateway.store, world.gateway.blobs
        blobs.put_ref("a", "models/tuned", b"{}")
        spec = jobs_pb2.DistillationJob()
        spec.concept.dataset = "projects/a/datasets/secret"
        row, _ = jobs.create(store, jobs_pb2.CreateDistillationJobRequest(project="a", job=spec))
        students.publish(store, "a", "fruit", made(job=jobs.name_of(row)))
        yield Owned(world, archive, items[0]["digest"], "secret", row.job_id, "fruit", "tuned")


async def test_every_rpc_is_in_the_table() -> None:
    tables = (set(ASKED), set(BY_NAME), set(LISTS), set(ELSEWHERE))
    assert set(methods()) == set.union(*tables)
    assert sum(map(len, tables)) == len(methods())


async def ask(owned: Owned, method: MethodDescriptor, request: Any) -> tuple[str, list[Any]]:
    """Call an RPC; return its code and what it answered."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answer = message_factory.GetMessageClass(method.output_type).FromString
    channel, serialise = owned.world.channel, type(request).SerializeToString
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path, serialise, answer)(request, timeout=20)
            return "OK", [one async for one in stream]
        return "OK", [await channel.unary_unary(path, serialise, answer)(request, timeout=20)]
    except grpc.aio.AioRpcError as error:
        return error.code().name, [error.details()]


@pytest.mark.parametrize("name", [*ASKED, *BY_NAME])
async def test_what_is_of_another_project_is_not_there(owned: Owned, name: str) -> None:
    method = methods()[name]
    kind = message_factory.GetMessageClass(method.input_type)
    if name in ASKED:
        requests = [make(owned) for make in ASKED[name]]
    else:
        field = next(one for one in _NAMES if one in method.input_type.fields_by_name)
        student = f"projects/b/students/{owned.student}"
        requests = [kind(**{field: one}) for one in (student, f"{student}/versions/1")]
    for request in requests:
        code, answers = await ask(owned, method, request)
        assert code in GONE, (request, answers)
        if "DistillationJob" in name and "project" in request.DESCRIPTOR.fields_by_name:
            assert "is not of project b" in answers[0]


@pytest.mark.parametrize("name", list(LISTS))
async def test_lists_show_nothing_of_others(owned: Owned, name: str) -> None:
    code, (answer,) = await ask(owned, methods()[name], LISTS[name])
    assert code == "OK"
    assert not answer.ListFields()


async def test_a_page_token_and_a_request_id_belong_to_one_project(owned: Owned) -> None:
    world = owned.world
    page = (await world.http.get("/v1/projects/a/datasets/secret/items?pageSize=1")).json()
    token = page["nextPageToken"]
    request = datasets_pb2.ListDatasetsRequest(project="b", page_token=token)
    assert (await ask(owned, methods()["ListDatasets"], request))[0] == "INVALID_ARGUMENT"

    for project in ("a", "b"):  # the same id: B is not told what A was answered
        body = json.dumps({"projectId": f"{project}-other", "requestId": "same"})
        answer = await world.http.post(
            "/v1/projects", content=body, headers={"content-type": "application/json"}
        )
        assert answer.json()["project"]["name"] == f"projects/{project}-other"


async def test_cache_keys_hold_the_project() -> None:
    digest = "0" * 64
    keys = {
        make(space, digest)  # type: ignore[operator]
        for project in ("a", "a-b", "b")
        for make, space in (
            (region_key, RegionSpace(project, digest, digest, digest)),
            (image_key, ImageSpace(project, digest, digest)),
        )
    }
    assert len(keys) == 6
    assert len(project_patterns("a")) == 2
    assert all(":a:" in one for one in project_patterns("a"))


@pytest.mark.parametrize("project", ["..", "a/../b", "", "A", "*", "a:b", "a\0"])
async def test_a_project_that_is_none_reaches_no_store(tmp_path: Any, project: str) -> None:
    blobs = BlobStore(str(tmp_path))
    digest = blobs.put("a", b"data")
    for reach in (
        lambda: blobs.get(project, digest),
        lambda: blobs.exists(project, digest),
        lambda: blobs.get_ref(project, "models/x"),
        lambda: list(blobs.list_refs(project, "models")),
        lambda: blobs.count(project),
        lambda: blobs.remove_project(project),
        lambda: project_patterns(project),
    ):
        with pytest.raises(Exception, match="project"):
            reach()
    assert blobs.get("a", digest) == b"data"
