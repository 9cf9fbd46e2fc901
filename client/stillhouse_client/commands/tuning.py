"""`stillhouse students tune`, `undo` and `promote`: what changes a student."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from stillhouse_client import names, sentences
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, near, run
from stillhouse_client.errors import ClientError, InvalidRequest, NotFound

Student = Annotated[str, typer.Argument(help="Name of the student.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(tune)
    app.command()(undo)
    app.command()(promote)


def tune(
    student: Student,
    label: Annotated[str, typer.Option("--class", help="Class whose weights move.")],
    up: Annotated[
        list[str] | None, typer.Option(help="Concept that should count more; repeatable.")
    ] = None,
    down: Annotated[
        list[str] | None, typer.Option(help="Concept that should count less; repeatable.")
    ] = None,
    factor: Annotated[float, typer.Option(help="How much: above 1, at most 100.")] = 2.0,
    base: Annotated[str, typer.Option(help="Version to tune; another than head branches.")] = "",
    expected_head: Annotated[
        str, typer.Option(help="Head that you saw; where it has moved, nothing is done.")
    ] = "",
    request_id: Annotated[str, typer.Option(help="UUID that makes it safe to repeat.")] = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Push concepts of a class up or down; the rest is refitted around them."""
    edits = make_edits(label, up or [], down or [], factor)

    async def work(client: AsyncClient) -> pb.TuneStudentResponse:
        try:
            return await client.students.tune(
                student,
                edits,
                base_version=base,
                expected_head=expected_head,
                request_id=request_id,
            )
        except (InvalidRequest, NotFound) as error:
            if "did you mean" not in error.message:
                error.hint = await _near_words(client, student, edits) or error.hint
            raise

    response = run(work, address, project)
    if as_json:
        output.print_json(response)
        return
    output.say(sentences.tuned(response))
    output.note(
        f"version {names.last(response.version.name)} is the head now; "
        f"`stillhouse students undo {names.last(student)}` takes it back"
    )


def undo(
    student: Student,
    request_id: Annotated[str, typer.Option(help="UUID that makes it safe to repeat.")] = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Go back to the version before the last tuning; nothing is deleted."""

    async def work(client: AsyncClient) -> pb.StudentVersion:
        return await client.students.undo(student, request_id=request_id)

    version = run(work, address, project)
    if as_json:
        output.print_json(version)
    else:
        output.say(f"version {names.last(version.name)} is the head again")


def promote(
    student: Student,
    version: Annotated[str, typer.Option("--version", help="Number or head.")] = "head",
    rollback: Annotated[bool, typer.Option("--rollback", help="Serve the one before.")] = False,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Set the version that predictions come from."""

    async def work(client: AsyncClient) -> pb.Student:
        return await client.students.promote(student, "previous" if rollback else version)

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
    else:
        output.say(
            f"{names.last(found.name)} serves version {names.last(found.promoted_version)} now"
        )


def make_edits(
    label: str, up: list[str], down: list[str], factor: float
) -> list[student_pb2.ConceptEdit]:
    """Return the edits of a tuning. Raises InvalidRequest where there is nothing to do."""
    if not up and not down:
        raise InvalidRequest("nothing to tune", hint='name a concept: --up "red skin"')
    if not 1 < factor <= 100:
        raise InvalidRequest(f"--factor {factor:g} is not above 1 and at most 100")
    both = sorted({*up} & {*down})
    if both:
        raise InvalidRequest(f"{both[0]!r} is both up and down", hint="leave one out")
    ways = [(up, student_pb2.DIRECTION_UP), (down, student_pb2.DIRECTION_DOWN)]
    return [
        student_pb2.ConceptEdit(label=label, concept=c, direction=way, factor=factor)
        for concepts, way in ways
        for c in concepts
    ]


async def _near_words(
    client: AsyncClient, student: str, edits: list[student_pb2.ConceptEdit]
) -> str:
    """Return near matches for a class or concept that the student does not know."""
    try:
        version = await client.students.version(student)
        card = json.loads(await client.blobs.read(version.student_ref.card_digest))
        classes, concepts = [str(c) for c in card["classes"]], [str(c) for c in card["concepts"]]
    except (ClientError, ValueError, KeyError, TypeError):
        return ""
    for edit in edits:
        if edit.label not in classes:
            return near(edit.label, classes) or f"known classes: {', '.join(classes)}"
        if edit.concept not in concepts:
            return near(edit.concept, concepts) or "see `stillhouse students show` for its concepts"
    return ""
