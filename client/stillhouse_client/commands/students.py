"""`stillhouse students`: look at students, tune them, serve them."""

from __future__ import annotations

from typing import Annotated

import typer
from stillhouse.gateway.v1 import students_pb2 as pb

from stillhouse_client import names, sentences
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import history, measures, output, serving, tuning
from stillhouse_client.commands.session import Address, Json, Project, Split, near, run
from stillhouse_client.errors import NotFound

app = typer.Typer(
    no_args_is_help=True, help="Students: linear models over named concepts that you can tune."
)
Student = Annotated[str, typer.Argument(help="Name of the student.")]
Version = Annotated[str, typer.Option("--version", help="Number, head or promoted.")]


_BAR = 12


@app.command("list")
def list_(
    address: Address = "", project: Project = names.DEFAULT_PROJECT, as_json: Json = False
) -> None:
    """List students, newest first."""

    async def work(client: AsyncClient) -> list[pb.Student]:
        return [*await client.students.list()]

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            names.last(s.name),
            names.last(s.dataset),
            names.last(s.teacher),
            str(len(s.classes)),
            names.last(s.head_version),
            names.last(s.promoted_version),
        )
        for s in found
    ]
    output.table(["student", "dataset", "teacher", "#classes", "#head", "#promoted"], rows)


@app.command()
def show(
    student: Student,
    label: Annotated[str, typer.Option("--class", help="Only this class.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Concepts per class.")] = 8,
    version: Version = "head",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show a student: per class its concepts, the most influential first."""

    async def work(client: AsyncClient) -> tuple[pb.Student, pb.StudentVersion]:
        found = await client.students.get(student)
        return found, await client.students.version(student, version)

    found, shown = run(work, address, project)
    classes = [c for c in shown.class_concepts if label in ("", c.label)]
    if label and not classes:
        known = [*found.classes]
        raise NotFound(f"no class {label!r}", hint=near(label, known) or f"known: {known}")
    if as_json:
        output.print_json({"student": found, "version": shown, "class_concepts": classes})
        return
    output.pairs(
        [
            ("student", found.name),
            ("version", f"{_titled(shown)} (promoted: {_number(found.promoted_version)})"),
            ("dataset", names.last(found.dataset)),
            ("teacher", names.last(found.teacher)),
            ("encoder", names.last(found.encoder)),
        ]
    )
    for entry in classes:
        _print_class(entry, top)


@app.command()
def log(
    student: Student,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show everything that was done to a student, oldest first."""

    async def work(client: AsyncClient) -> list[pb.StudentEvent]:
        return [*await client.students.events(student)]

    events = run(work, address, project)
    if as_json:
        output.print_json(events)
        return
    for event in events:
        version = names.last(event.version)
        output.say(f"{output.when(event.event_time)}  {event.kind:9} version {version}")
        if event.description:
            output.detail(event.description)
        if event.effects:
            output.detail(sentences.tuning(event.effects, event.changes))


@app.command()
def compare(
    student: Student,
    first: Annotated[str, typer.Argument(help="Version: number, head or promoted.")],
    second: Annotated[str, typer.Argument(help="Version: number, head or promoted.")],
    split: Split = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Compare two versions: the weights that differ and the metrics of both."""

    async def work(client: AsyncClient) -> pb.CompareStudentVersionsResponse:
        return await client.students.compare(student, first, second, split=split)

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    output.table(
        ["class", "concept", f"#version {first}", f"#version {second}"],
        [
            (d.label, d.concept, f"{d.first_weight:.4g}", f"{d.second_weight:.4g}")
            for d in found.differences[:30]
        ],
        title=f"{len(found.differences)} weights differ",
    )
    metrics = sorted({*found.first_metrics, *found.second_metrics}, key=_overall_first)
    output.table(
        ["metric", f"#version {first}", f"#version {second}"],
        [
            (
                metric,
                output.estimate(found.first_metrics.get(metric)),
                output.estimate(found.second_metrics.get(metric)),
            )
            for metric in metrics
        ],
        title=sentences.split(split),
    )


tuning.register(app)
history.register(app)
measures.register(app)
serving.register(app)


def _number(version: str) -> str:
    return names.last(version) or "none"


def _titled(version: pb.StudentVersion) -> str:
    name = f' "{version.display_name}"' if version.display_name else ""
    return f"{names.last(version.name)}{name}"


def _print_class(entry: pb.ClassConcepts, top: int) -> None:
    most = max((abs(c.influence) for c in entry.concepts), default=0.0) or 1.0
    rows = [
        (
            c.concept,
            f"{c.weight:+.4f}",
            f"{c.influence:+.4f}",
            "for" if c.weight > 0 else "against",
            "█" * max(round(abs(c.influence) / most * _BAR), 1),
        )
        for c in entry.concepts[:top]
    ]
    title = f"{entry.label}: {len(entry.concepts)} concepts"
    output.table(["concept", "#weight", "#influence", "speaks", "how much"], rows, title=title)


def _overall_first(metric: str) -> tuple[bool, str]:
    return "/" in metric, metric
