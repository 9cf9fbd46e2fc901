"""Projects over HTTP: settings, signed webhooks, retention, and a deletion that shows its work."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from stillhouse.gateway.v1 import jobs_pb2

from services.common.errors import NotFound, PeerUnavailable
from services.common.outbound import Addresses
from services.gateway.jobs import records as jobs
from services.gateway.projects.deletion import Deletions
from services.gateway.projects.retention import Keeping, Removed
from services.gateway.projects.rows import DeliveryRow, ProjectRow
from services.gateway.projects.webhooks import Deliveries
from services.gateway.store import JobRow, Store
from tests.common.test_outbound import web
from tests.gateway.edge_world import JSON
from tests.gateway.lab import Lab, lab_root, prompts
from tests.gateway.language_peers import HERE, name_of
from tests.support import free_port, service

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
DAY_S = 86_400.0


async def finished(lab: Lab) -> str:
    """A language job of this project that has ended well, and its name."""
    spec = {
        "dataset": await prompts(lab),
        "teacher": name_of("tuned"),
        "student": name_of("twin"),
        "modelId": "small",
    }
    name = await lab.start(language=spec)
    await lab.done(name)
    lab.student.runs.add((HERE.project, f"{name.rpartition('/')[2]}-run"))
    return name


async def settings(lab: Lab, **fields: Any) -> Any:
    made = json.dumps({"projectId": HERE.project})
    await lab.world.http.post("/v1/projects", content=made, headers=JSON)
    body = json.dumps({"project": fields})
    return await lab.world.http.patch(lab_root(), content=body, headers=JSON)


def deletions(lab: Lab) -> Deletions:
    gateway = lab.world.gateway
    return Deletions(gateway.engine._tools, gateway.engine, gateway.instances)


async def test_settings_are_kept_and_a_secret_is_shown_once(lab: Lab) -> None:
    http, name = lab.world.http, f"{HERE.project}-made"
    hook = {"uri": "https://example.org/hook"}
    body = json.dumps({"projectId": name, "project": {"webhooks": [hook]}, "requestId": "r1"})
    made = (await http.post("/v1/projects", content=body, headers=JSON)).json()["project"]
    assert made["name"] == f"projects/{name}"
    assert made["webhooks"][0]["secret"].startswith("whsec_")
    again = (await http.post("/v1/projects", content=body, headers=JSON)).json()["project"]
    assert again["webhooks"] == [{"uri": hook["uri"], "secret": ""}]
    other = await http.post("/v1/projects", content=json.dumps({"projectId": name}), headers=JSON)
    assert other.status_code == 409

    path = f"/v1/projects/{name}"
    rules = {"failedJobDays": 7, "finishedJobDays": 0, "stageOutputDays": 0}
    patch = json.dumps({"project": {"retention": rules}})
    found = (await http.patch(path, content=patch, headers=JSON)).json()["project"]
    assert found["retention"] == rules
    assert found["webhooks"] == [{"uri": hook["uri"], "secret": ""}]
    assert (await http.get(path)).json()["project"] == found
    listed = (await http.get("/v1/projects", params={"pageSize": 1})).json()
    assert len(listed["projects"]) == 1
    assert (await http.get("/v1/projects/nobody-uses-it")).status_code == 404
    for wrong in (
        {"retention": {"failedJobDays": -1}},
        {"webhooks": [{"uri": "file:///etc/passwd"}]},
        {"webhooks": [{"uri": "http://169.254.169.254/"}]},
        {"webhooks": [{"uri": "https://example.org/", "secret": "short"}]},
        {"webhooks": [hook, hook]},
    ):
        patch = json.dumps({"project": wrong})
        assert (await http.patch(path, content=patch, headers=JSON)).status_code == 400, wrong


async def test_the_list_of_projects_has_pages_whose_tokens_are_of_this_list(lab: Lab) -> None:
    for name in ("page-1", "page-2", "page-3"):
        made = json.dumps({"projectId": name})
        assert (await lab.world.http.post("/v1/projects", content=made, headers=JSON)).is_success
    found, token = [], ""
    while True:
        params = {"pageSize": 2, "pageToken": token}
        page = (await lab.world.http.get("/v1/projects", params=params)).json()
        found += [one["name"] for one in page["projects"]]
        if not (token := page.get("nextPageToken", "")):
            break
    assert found == sorted(set(found))
    assert {"projects/page-1", "projects/page-2", "projects/page-3"} <= set(found)
    made_up = await lab.world.http.get("/v1/projects", params={"pageToken": "page-1"})
    assert made_up.status_code == 400
    assert "page_token" in made_up.text


async def test_a_webhook_hears_of_every_end_signed_and_again_until_it_answers(lab: Lab) -> None:
    gateway = lab.world.gateway
    answers = {"/hook": (500, {}, b"x" * 100_000)}
    with web(answers) as (url, seen):
        hook = {"uri": f"{url}/hook", "secret": SECRET}
        assert (await settings(lab, webhooks=[hook])).status_code == 200
        job = await finished(lab)
        assert not seen  # nobody sends yet: the message is a row, written as the job ended
        sending = Deliveries(gateway.store, gateway.addresses, every_s=0.05, pauses_s=(0.2,) * 50)
        sending.start()
        await until(lambda: len(seen) >= 2)
        answers["/hook"] = (204, {}, b"")
        await until(lambda: not pending(gateway.store, HERE.project))
        count = len(seen)
        await asyncio.sleep(0.5)
        assert len(seen) == count
        await sending.stop()
    assert job


async def test_what_a_webhook_gets_can_be_verified(lab: Lab) -> None:
    """By the lines that docs/privacy.md shows."""
    gateway, got = lab.world.gateway, []

    class Recording(Addresses):
        def post(self, url: str, body: bytes, headers: Any, **_: Any) -> Any:
            got.append((body, dict(headers)))
            raise PeerUnavailable("recorded")

    assert await settings(lab, webhooks=[{"uri": "https://example.org/", "secret": SECRET}])
    job = await finished(lab)
    sending = Deliveries(gateway.store, Recording(), every_s=0.05, pauses_s=())
    sending.start()
    await until(lambda: bool(got))
    await until(lambda: not pending(gateway.store, HERE.project))  # given up: no attempt is left
    await sending.stop()
    body, headers = got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert hmac.compare_digest(headers["webhook-signature"], f"v1,{expected}")
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300
    said = json.loads(body)
    assert (said["type"], said["data"]["job"]) == ("job.succeeded", job)
    assert said["data"]["model"] == name_of("small")


async def test_a_deletion_removes_all_of_one_project_and_shows_it(lab: Lab) -> None:
    kept, kept_project = await finished(lab), HERE.project
    before = await deletions(lab).count(kept_project)
    lab.fresh("to be deleted")
    await finished(lab)
    gone, http = HERE.project, lab.world.http
    assert (await settings(lab, retention={"failedJobDays": 1})).status_code == 200
    asked = (await http.delete(f"/v1/projects/{gone}")).json()["deletion"]
    assert asked["name"] == f"projects/{gone}/deletion"
    assert (await http.get(f"/v1/projects/{gone}")).json()["project"]["deleting"]
    late = await lab.post("/datasets", {"datasetId": "late", "uri": "builtin:fruit"})
    assert late.status_code == 400
    assert "being deleted" in late.text

    await half_deleted(lab)
    await deletions(lab).work()
    found = (await http.get(f"/v1/projects/{gone}/deletion")).json()["deletion"]
    assert found["endTime"]
    counts = {one["kind"]: (int(one["before"]), int(one["after"])) for one in found["data"]}
    assert {after for _, after in counts.values()} == {0}
    for kind in ("jobs", "job events", "datasets", "blobs", "refs", "workflows", "training runs"):
        assert counts[kind][0] > 0, kind
    assert not (Path(lab.blobs._root) / "projects" / gone).exists()
    assert (await http.get(f"/v1/projects/{gone}")).status_code == 404
    assert await deletions(lab).count(kept_project) == before
    assert (await lab.job(kept))["state"] == "JOB_STATE_SUCCEEDED"


async def half_deleted(lab: Lab) -> None:
    """Let a deletion be cut off after the rows and before the blobs, as by a kill."""
    stopped = deletions(lab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopped._tools.blobs, "remove_project", _killed)
        with pytest.raises(KeyboardInterrupt):
            await stopped.work()


def _killed(project: str) -> None:
    raise KeyboardInterrupt


async def test_retention_removes_what_is_old_and_nothing_that_is_needed(lab: Lab) -> None:
    gateway = lab.world.gateway
    name = await finished(lab)
    row = jobs.get(gateway.store, HERE.project, name.rpartition("/")[2])
    tools = gateway.engine._tools

    async def later(days: float) -> list[Removed]:
        keeping = Keeping(tools, gateway.engine, now=lambda: time.time() + days * DAY_S)
        return [one for one in await keeping.work() if one.project == HERE.project]

    assert not await later(1000)  # no rules
    rules = {"failedJobDays": 3, "finishedJobDays": 30, "stageOutputDays": 20}
    assert (await settings(lab, retention=rules)).status_code == 200
    assert not await later(10)
    (some,) = await later(25)
    assert (some.jobs, some.runs) == (0, 0)
    assert some.stage_outputs > 0

    change(gateway.store, row.pk, state="FAILED")
    (removed,) = await later(4)
    assert (removed.jobs, removed.runs) == (1, 1)
    with pytest.raises(NotFound):
        jobs.get(gateway.store, HERE.project, row.job_id)
    assert lab.blobs.get_ref(HERE.project, "models/small")


async def test_a_gateway_that_was_killed_delivers_when_it_starts(tmp_path: Path) -> None:
    url, port = f"sqlite:///{tmp_path}/gateway.db", free_port()
    store = Store(url)
    with store.write() as session:
        hook = {"uri": f"http://127.0.0.1:{port}/hook", "secret": SECRET}
        session.add(ProjectRow(project="p", webhooks_json=json.dumps([hook])))
    spec = jobs_pb2.DistillationJob(
        language=jobs_pb2.LanguageJobSpec(dataset="projects/p/datasets/d")
    )
    row, _ = jobs.create(store, jobs_pb2.CreateDistillationJobRequest(project="p", job=spec))
    assert jobs.append(store, row.pk, "finished", state="SUCCEEDED")
    environment = {"GATEWAY_DATABASE_URL": url, "GATEWAY_ALLOWED_ADDRESSES": '["127.0.0.1"]'}
    with service("gateway", tmp_path, **environment) as first:
        await until(lambda: any(one.attempts for one in pending(store, "p")), timeout_s=30)
        first.kill()
    with web({"/hook": (200, {}, b"")}, port=port) as (_, seen):
        with service("gateway", tmp_path, **environment):
            await until(lambda: not pending(store, "p"), timeout_s=60)
        assert seen == ["POST /hook"]
    store.close()


def pending(store: Store, project: str) -> list[DeliveryRow]:
    with store.read() as session:
        return list(session.scalars(select(DeliveryRow).where(DeliveryRow.project == project)))


def change(store: Store, pk: int, **values: Any) -> None:
    with store.write() as session:
        session.execute(update(JobRow).where(JobRow.pk == pk).values(values))


async def until(condition: Any, *, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.05)
