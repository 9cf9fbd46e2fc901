"""Starts a job of any kind: estimate, watch or detach, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import job_tables, output, watching
from stillhouse_client.commands.session import EXIT_INTERRUPTED, Address, Json, Project, run
from stillhouse_client.job_report import read
from stillhouse_client.jobs import Spec

RequestId = Annotated[str, typer.Option(help="UUID that makes the call safe to repeat.")]
Watch = Annotated[bool, typer.Option("--watch/--detach", help="Follow the job, or return at once.")]


@dataclass(frozen=True)
class StartFlags:
    """How the command runs."""

    dry_run: Annotated[bool, typer.Option(help="Check and estimate, without running.")] = False
    watch: Watch = True
    request_id: RequestId = ""
    address: Address = ""
    project: Project = names.DEFAULT_PROJECT
    as_json: Json = False


def start(spec: Spec, flags: StartFlags) -> None:
    """Run a job, or estimate it, as the flags say."""
    if flags.dry_run:
        _estimate(spec, flags)
        return
    begun: list[pb.DistillationJob] = []
    try:
        job, report = run(lambda c: _work(c, spec, flags, begun), flags.address, flags.project)
    except KeyboardInterrupt:
        watching.interrupted(begun[0].name if begun else "")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not flags.watch and not flags.as_json:
        output.say(f"started {job.name}")
        output.note(f"follow it with `stillhouse jobs watch {names.last(job.name)}`")
        return
    job_tables.print_job(job, report, as_json=flags.as_json)
    job_tables.require_success(job, as_json=flags.as_json)
    if not flags.as_json:
        _next(job)


async def _work(
    client: AsyncClient, spec: Spec, flags: StartFlags, begun: list[pb.DistillationJob]
) -> tuple[pb.DistillationJob, dict[str, Any] | None]:
    job = await client.jobs.create(spec, request_id=flags.request_id)
    begun.append(job)
    if not flags.watch:
        return job, None
    output.note(
        f"the job goes on without this window; see it again with "
        f"`stillhouse jobs watch {names.last(job.name)}`"
    )
    if flags.as_json:
        async for event in client.jobs.watch(job.name):
            job = event.job
        return await client.jobs.get(job.name), None
    job = await watching.follow(client, job.name)
    return job, await read(client, job)


def _next(job: pb.DistillationJob) -> None:
    if job.student_version:
        student = job.student_version.split("/")[3]
        output.note(f"look at it with `stillhouse students show {student}`")
    if job.WhichOneof("spec") in ("language", "tuneshift", "prune") and job.model:
        model = names.last(job.model)
        output.note(f'try it with `stillhouse models generate {model} --prompt "..."`')
        output.note(f"take it along with `stillhouse models download {model} DIR`")


def _estimate(spec: Spec, flags: StartFlags) -> None:
    async def work(client: AsyncClient) -> pb.EstimateDistillationJobResponse:
        return await client.jobs.estimate(spec)

    cost = run(work, flags.address, flags.project)
    if flags.as_json:
        output.print_json(cost)
        return
    rows = [("images", f"{cost.item_count} ({cost.cached_item_count} in the cache)")]
    rows += [("concepts", str(cost.concept_count))]
    if isinstance(spec, pb.LanguageJobSpec | pb.PruneJobSpec):
        rows = [("records", str(cost.item_count))]
    elif isinstance(spec, pb.TuneShiftJobSpec):
        rows = [("prompts", str(cost.item_count))]
    elif isinstance(spec, pb.ClassifierJobSpec):
        rows = rows[:1]
    rows += [("time", f"about {output.seconds(cost.duration_s)}")]
    output.pairs([*rows, ("storage", output.size(cost.stored_bytes))])
