"""`stillhouse jobs`: list, show, watch, cancel."""

from __future__ import annotations

from typing import Annotated

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output, watching
from stillhouse_client.commands.session import EXIT_FAILED, Address, Json, Project, run
from stillhouse_client.jobs import FINAL, check_outcome

app = typer.Typer(no_args_is_help=True, help="Distillation jobs: durable, resumable, watchable.")
Job = Annotated[str, typer.Argument(help="Name of the job.")]
_STATES = {
    pb.JOB_STATE_QUEUED: "queued",
    pb.JOB_STATE_RUNNING: "running",
    pb.JOB_STATE_SUCCEEDED: "succeeded",
    pb.JOB_STATE_FAILED: "failed",
    pb.JOB_STATE_CANCELLING: "being cancelled",
    pb.JOB_STATE_CANCELLED: "cancelled",
}


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""

    async def work(client: AsyncClient) -> list[pb.DistillationJob]:
        return [*await client.jobs.list(limit=limit)]

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            names.last(job.name),
            kind_of(job),
            _dataset_of(job),
            _STATES.get(job.state, "?"),
            _stage_of(job),
            output.age(job.create_time),
        )
        for job in found
    ]
    output.table(["job", "kind", "dataset", "state", "stage", "created"], rows)


@app.command()
def show(
    job: Job,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show a job: state, stages, what it made."""

    async def work(client: AsyncClient) -> pb.DistillationJob:
        return await client.jobs.get(job)

    print_job(run(work, address, project), as_json=as_json)


@app.command()
def watch(
    job: Job,
    resume_token: Annotated[str, typer.Option(help="Go on after this event.")] = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Follow a job until it ends. With --json, one JSON line per event."""

    async def work(client: AsyncClient) -> pb.DistillationJob:
        await client.jobs.get(job)
        return await watching.follow(client, job, as_json=as_json, resume_token=resume_token)

    ended = run(work, address, project)
    if not as_json:
        print_job(ended)
    require_success(ended, as_json=as_json)


@app.command()
def cancel(
    job: Job,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Cancel a job; what it has computed stays and makes the next run shorter."""

    async def work(client: AsyncClient) -> pb.DistillationJob:
        return await client.jobs.cancel(job)

    cancelled = run(work, address, project)
    if as_json:
        output.print_json(cancelled)
    else:
        output.say(f"{names.last(cancelled.name)} is {_STATES.get(cancelled.state, '?')}")


def print_job(job: pb.DistillationJob, *, as_json: bool = False) -> None:
    """Print a job."""
    if as_json:
        output.print_json(job)
        return
    rows = [("job", job.name), ("kind", kind_of(job)), ("state", _STATES.get(job.state, "?"))]
    rows += [("student", job.student_version)] if job.student_version else []
    rows += [("model", job.model)] if job.model else []
    rows += [("error", job.error.message)] if job.error.message else []
    output.pairs(rows)
    stages = [
        (s.stage, _count(s), s.unit, str(s.cache_hits or ""), output.seconds(s.elapsed_s))
        for s in job.stages
    ]
    if stages:
        output.table(["stage", "#done", "unit", "#from cache", "#time"], stages)


def require_success(job: pb.DistillationJob, *, as_json: bool) -> None:
    """End the command with exit code 1 where the job failed or was cancelled.

    With --json the job itself, already printed, is the one document that says why.
    """
    if not as_json:
        check_outcome(job)
    elif job.state in FINAL and job.state != pb.JOB_STATE_SUCCEEDED:
        raise typer.Exit(EXIT_FAILED)


def kind_of(job: pb.DistillationJob) -> str:
    """Return a job's kind for people."""
    return (job.WhichOneof("spec") or "?").replace("_", " ")


def _dataset_of(job: pb.DistillationJob) -> str:
    spec = job.concept if job.WhichOneof("spec") == "concept" else job.teacher_head
    return names.last(spec.dataset)


def _stage_of(job: pb.DistillationJob) -> str:
    running = [s for s in job.stages if not s.complete and (s.done or s.elapsed_s)]
    return running[0].stage if running else ""


def _count(stage: pb.JobStage) -> str:
    if stage.total and stage.total != stage.done:
        return f"{stage.done} of {stage.total}"
    return str(stage.done) if stage.done else ("yes" if stage.complete else "")
