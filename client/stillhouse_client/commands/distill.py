"""`stillhouse distill`: start a job of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output, watching
from stillhouse_client.commands.jobs import print_job, require_success
from stillhouse_client.commands.session import Address, Json, Project, run
from stillhouse_client.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="Start a distillation job.")
Spec = pb.ConceptJobSpec | pb.TeacherHeadJobSpec
Dataset = Annotated[str, typer.Option(help="Dataset to learn from.")]
Seed = Annotated[int, typer.Option(help="Seed of folds, controls and intervals.")]
Watch = Annotated[bool, typer.Option("--watch/--detach", help="Follow the job, or return at once.")]
RequestId = Annotated[str, typer.Option(help="UUID that makes the call safe to repeat.")]


@app.command()
def concept(
    dataset: Dataset,
    teacher: Annotated[str, typer.Option(help="Model to distil: see `stillhouse models list`.")],
    encoder: Annotated[str, typer.Option(help="Encoder; without it, effl2-minilm.")] = "",
    concept_set: Annotated[str, typer.Option(help="Concept set; without it, everyday.")] = "",
    concepts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Text file with a word or phrase per line."),
    ] = None,
    student: Annotated[str, typer.Option(help="Name of the student; the dataset's.")] = "",
    nec: Annotated[
        float | None, typer.Option(min=1, help="Non-zero weights per class to aim at; 30.")
    ] = None,
    l1: Annotated[float | None, typer.Option(min=0, help="L1 penalty, instead of --nec.")] = None,
    control_draws: Annotated[
        int, typer.Option(help="Draws of the random control; 0 means 20, -1 none.")
    ] = 0,
    whole_image_only: Annotated[bool, typer.Option(help="Without regions, to compare.")] = False,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option(help="Check and estimate, without running.")] = False,
    watch: Watch = True,
    request_id: RequestId = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Distil an image classifier into a sparse student over named concepts."""
    if nec is not None and l1 is not None:
        raise InvalidRequest("--nec and --l1 exclude one another", hint="leave one out")
    spec = pb.ConceptJobSpec(
        dataset=names.full("datasets", dataset, project=project),
        teacher=names.full("models", teacher, project=project),
        encoder=names.full("encoders", encoder, project=project),
        concept_set=names.full("conceptSets", concept_set, project=project),
        concepts=_words(concepts) if concepts else [],
        student_id=student,
        seed=seed,
        control_draws=control_draws,
        whole_image_only=whole_image_only,
    )
    if l1 is not None:
        spec.l1 = l1
    elif nec is not None:
        spec.nec = nec
    _start(spec, address, project, request_id, dry_run=dry_run, watch=watch, as_json=as_json)


@app.command("teacher-head")
def teacher_head(
    dataset: Dataset,
    backbone: Annotated[str, typer.Option(help="Model under the head.")] = "efficientnet-lite0",
    model: Annotated[str, typer.Option(help="Name of the new model; {dataset}-teacher.")] = "",
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option(help="Check and estimate, without running.")] = False,
    watch: Watch = True,
    request_id: RequestId = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Train a linear teacher head on a backbone's features, from a labelled dataset."""
    spec = pb.TeacherHeadJobSpec(
        dataset=names.full("datasets", dataset, project=project),
        backbone=names.full("models", backbone, project=project),
        model_id=model,
        seed=seed,
    )
    _start(spec, address, project, request_id, dry_run=dry_run, watch=watch, as_json=as_json)


def _start(
    spec: Spec,
    address: str,
    project: str,
    request_id: str,
    *,
    dry_run: bool,
    watch: bool,
    as_json: bool,
) -> None:
    if dry_run:
        _estimate(spec, address, project, as_json=as_json)
        return

    async def work(client: AsyncClient) -> pb.DistillationJob:
        job = await client.jobs.create(spec, request_id=request_id)
        if not watch:
            return job
        output.note(
            f"the job goes on without this window; see it again with "
            f"`stillhouse jobs watch {names.last(job.name)}`"
        )
        if as_json:
            async for event in client.jobs.watch(job.name):
                job = event.job
            return await client.jobs.get(job.name)
        return await watching.follow(client, job.name)

    job = run(work, address, project)
    if not watch and not as_json:
        output.say(f"started {job.name}")
        output.note(f"follow it with `stillhouse jobs watch {names.last(job.name)}`")
        return
    print_job(job, as_json=as_json)
    require_success(job, as_json=as_json)
    if job.student_version and not as_json:
        student = job.student_version.split("/")[3]
        output.note(f"look at it with `stillhouse students show {student}`")


def _estimate(spec: Spec, address: str, project: str, *, as_json: bool) -> None:
    async def work(client: AsyncClient) -> pb.EstimateDistillationJobResponse:
        return await client.jobs.estimate(spec)

    cost = run(work, address, project)
    if as_json:
        output.print_json(cost)
        return
    output.pairs(
        [
            ("images", f"{cost.item_count} ({cost.cached_item_count} in the cache)"),
            ("concepts", str(cost.concept_count)),
            ("time", f"about {output.seconds(cost.duration_s)}"),
            ("storage", output.size(cost.stored_bytes)),
        ]
    )


def _words(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    words = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not words:
        raise InvalidRequest(f"{path} has no words", hint="write one word or phrase per line")
    return words
