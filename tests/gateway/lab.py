"""A gateway with its engine before stand-ins, as stories of language jobs use it over HTTP."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from services.common.blobs import BlobStore
from services.gateway.assembly import STORIES
from services.gateway.jobs.engine import Engine
from tests.gateway.edge_world import JSON, World, edge_world
from tests.gateway.language_peers import HERE, WORDS, Student, Teacher, peers

TEXTS = {"kind": "DATASET_KIND_TEXTS"}
JOBS = "/distillationJobs"


def lab_root() -> str:
    return f"/v1/projects/{HERE.project}"


@dataclass
class Lab:
    """A gateway with its engine, and the stand-ins that it calls."""

    world: World
    teacher: Teacher
    student: Student
    blobs: BlobStore

    def fresh(self, name: str) -> None:
        """Work in a project of its own, and count calls anew."""
        HERE.project = f"p-{zlib.crc32(name.encode())}"
        self.teacher.calls.clear()
        self.student.recipes.clear()
        self.student.measured.clear()
        self.student.first_step, self.student.is_full = 70_000, False

    async def restart(self) -> None:
        """Stop the gateway's engine and start another, as a restart does."""
        gateway = self.world.gateway
        await gateway.engine.stop()
        gateway.engine = Engine(gateway.engine._tools, STORIES)
        await gateway.engine.start()

    async def get(self, path: str) -> Any:
        return await self.world.http.get(f"{lab_root()}{path}")

    async def post(self, path: str, body: object) -> Any:
        content = json.dumps(body)
        return await self.world.http.post(f"{lab_root()}{path}", content=content, headers=JSON)

    async def dataset(self, name: str, rows: list[dict[str, Any]]) -> str:
        data = "\n".join(json.dumps(row) for row in rows).encode()
        answer = await self.world.http.post(f"{lab_root()}/archives", content=data)
        body = {"datasetId": name, "archive": answer.json()["archive"], **TEXTS}
        assert (await self.post("/datasets", body)).status_code == 200
        return await self.ready(name)

    async def ready(self, name: str) -> str:
        while True:
            found = (await self.get(f"/datasets/{name}")).json()["dataset"]
            if found["state"] != "DATASET_STATE_CREATING":
                break
            await asyncio.sleep(0.01)
        assert found["state"] == "DATASET_STATE_READY", found
        return str(found["name"])

    async def start(self, **spec: Any) -> str:
        answer = await self.post(JOBS, {"job": spec})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["job"]["name"])

    async def refused(self, **spec: Any) -> str:
        answer = await self.post(JOBS, {"job": spec})
        assert answer.status_code == 400, answer.text
        return str(answer.json()["message"])

    async def job(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.world.http.get(f"/v1/{name}")).json()["job"]
        return found

    async def until(self, name: str, *states: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while (found := await self.job(name))["state"].removeprefix("JOB_STATE_") not in states:
                await asyncio.sleep(0.03)
        return found

    async def stage(self, name: str, stage: str) -> None:
        async with asyncio.timeout(30):
            while stage not in [one["stage"] for one in (await self.job(name))["stages"]]:
                await asyncio.sleep(0.03)

    async def done(self, name: str) -> dict[str, Any]:
        found = await self.until(name, "SUCCEEDED", "FAILED")
        assert found["state"] == "JOB_STATE_SUCCEEDED", found["error"]
        report = json.loads(self.blobs.get(HERE.project, found["report"]["digest"]))
        return {**found, "json": report}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """A gateway with its engine, and teacher and student that answer by rule."""
    folder = tmp_path_factory.mktemp("lab")
    blobs = BlobStore(str(folder / "blobs"))
    async with peers(blobs) as (teacher, student, address):
        where: dict[str, Any] = {"teacher_address": address, "student_address": address}
        where["allowed_addresses"] = ("127.0.0.0/8",)
        async with edge_world(folder, **where) as world:
            await world.gateway.engine.start()
            yield Lab(world, teacher, student, blobs)
            await world.gateway.engine.stop()


@pytest.fixture
def lab(one_lab: Lab, request: pytest.FixtureRequest) -> Lab:
    """The one lab, in a project of the test's own."""
    one_lab.fresh(request.node.name)
    return one_lab


async def facts(lab: Lab) -> str:
    rows = [
        {
            "prompt": f"what of {word}?",
            "choices": [f"{word} is colour {at}", "no"],
            "choice_index": 0,
            "group": word,
            "split": "test",
            "id": word,
        }
        for at, word in enumerate(WORDS)
    ]
    return await lab.dataset("facts", rows)


async def prompts(lab: Lab, name: str = "data", count: int = 20) -> str:
    return await lab.dataset(name, [{"prompt": f"q{n}", "answer": f"a{n}"} for n in range(count)])
