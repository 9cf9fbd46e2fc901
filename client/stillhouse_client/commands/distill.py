"""`stillhouse distill`: start a job of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.commands import classifier, language, prune, tuneshift
from stillhouse_client.commands.lines import read_lines
from stillhouse_client.commands.session import Address, Json, Project
from stillhouse_client.commands.starting import RequestId, StartFlags, Watch, start
from stillhouse_client.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="Start a distillation job.")
language.register(app)
tuneshift.register(app)
prune.register(app)
classifier.register(app)
Dataset = Annotated[str, typer.Option(help="Dataset to learn from.")]
_ONE_WORD = "write one word or phrase per line"
Seed = Annotated[int, typer.Option(help="Seed of folds, controls and intervals.")]


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
        concepts=read_lines(concepts, "words", _ONE_WORD) if concepts else [],
        student_id=student,
        seed=seed,
        control_draws=control_draws,
        whole_image_only=whole_image_only,
    )
    if l1 is not None:
        spec.l1 = l1
    elif nec is not None:
        spec.nec = nec
    start(spec, StartFlags(dry_run, watch, request_id, address, project, as_json))


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
    start(spec, StartFlags(dry_run, watch, request_id, address, project, as_json))
