"""`stillhouse students evaluate` and `concepts`: figures of a version, presence of words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from stillhouse.gateway.v1 import students_pb2 as pb

from stillhouse_client import names, sentences
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, Split, run

Student = Annotated[str, typer.Argument(help="Name of the student.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(evaluate)
    app.command()(concepts)


def evaluate(
    student: Student,
    version: Annotated[str, typer.Option("--version", help="Number, head or promoted.")] = "head",
    split: Split = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Measure a version, for all images and per class, with 95 % intervals."""

    async def work(client: AsyncClient) -> pb.EvaluateStudentVersionResponse:
        return await client.students.evaluate(student, version, split=split)

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    rows = [(name, output.estimate(found.metrics[name])) for name in found.metrics]
    rows += [(name, f"undefined: {why}") for name, why in found.undefined.items()]
    output.table(
        ["metric", "value"],
        sorted(rows, key=lambda row: ("/" in row[0], row[0])),
        title=f"{found.item_count} images, {sentences.split(split)};"
        f" {found.nec:.1f} concepts per class",
    )


def concepts(
    student: Student,
    word: Annotated[list[str], typer.Option(help="Word to look for; repeatable.")],
    label: Annotated[str, typer.Option("--class", help="Examples of this class alone.")] = "",
    count: Annotated[int, typer.Option(min=1, max=100, help="Examples per word.")] = 4,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show where words are strongest and how present in each class; any word will do."""

    async def work(client: AsyncClient) -> pb.ListConceptExamplesResponse:
        return await client.students.concepts(student, word, label=label, per_concept=count)

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    output.table(["word", "class", "#mean presence", "#AUC"], _presences(found))
    output.table(
        ["word", "image", "#presence"],
        [(one.concept, one.item.item_id, f"{one.presence:.3f}") for one in found.examples],
    )


def _presences(found: pb.ListConceptExamplesResponse) -> Iterator[tuple[str, str, str, str]]:
    for one in found.presences:
        word = one.concept if one.known else f"{one.concept} (not in the student)"
        for at in sorted(one.classes, key=lambda entry: -entry.auc):
            yield word, at.label, f"{at.mean_presence:.3f}", f"{at.auc:.3f}"
