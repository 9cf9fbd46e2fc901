"""`stillhouse students predict`, `explain` and `export`: what uses a student."""

from __future__ import annotations

import enum
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from stillhouse_client import images, names, predictions
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, run
from stillhouse_client.errors import InvalidRequest, from_status

Student = Annotated[str, typer.Argument(help="Name of the student.")]
Version = Annotated[str, typer.Option("--version", help="Number, head or promoted.")]


class Format(enum.StrEnum):
    """File formats of an export."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"


_FORMATS = {
    Format.SAFETENSORS: student_pb2.EXPORT_FORMAT_SAFETENSORS,
    Format.ONNX: student_pb2.EXPORT_FORMAT_ONNX,
}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(predict)
    app.command()(explain)
    app.command()(export)


def predict(
    student: Student,
    folder: Annotated[Path, typer.Argument(help="Image, or folder of images at any depth.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File, .parquet or .csv.")] = Path(
        "predictions.parquet"
    ),
    version: Annotated[str, typer.Option("--version", help="Without it, the promoted.")] = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Predict every image of a folder into a parquet or CSV file."""
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise InvalidRequest(f"--out {out} is no kind of file I write", hint="end it in .parquet")
    files = images.find(folder)
    base = folder if folder.is_dir() else folder.parent

    async def work(client: AsyncClient) -> dict[str, Any]:
        classes = [*(await client.students.get(student)).classes]
        labels: Counter[str] = Counter()
        served = ""
        columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn())
        with (
            Progress(*columns, console=output.err, transient=True) as bars,
            predictions.Writer(out, classes) as writer,
        ):
            task = bars.add_task("predict", total=len(files))
            items = (images.to_input(file, base) for file in files)
            async for response in client.students.predict(student, items, version=version):
                rows = predictions.rows_of(response)
                writer.write(rows)
                labels.update(str(row["label"]) for row in rows if row["error"] is None)
                served = response.version or served
                bars.advance(task, len(rows))
        failed = len(files) - labels.total()
        return {
            "file": str(out),
            "images": len(files),
            "failed": failed,
            "version": served,
            "labels": dict(labels.most_common()),
        }

    summary = run(work, address, project)
    if as_json:
        output.print_json(summary)
        return
    output.table(["class", "#images"], [(k, str(n)) for k, n in summary["labels"].items()])
    output.say(f"{summary['images']} images predicted into {out}")
    if summary["failed"]:
        output.note(f"{summary['failed']} could not be read; column `error` says why")


def explain(
    student: Student,
    files: Annotated[list[Path], typer.Argument(help="Images.")],
    label: Annotated[str, typer.Option("--class", help="Class; without it, the predicted.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Concepts per image.")] = 8,
    version: Version = "head",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Explain images: what each concept added to the class's logit, and where in the image."""
    found = [file for path in files for file in images.find(path)]

    async def work(client: AsyncClient) -> list[pb.ImageExplanation]:
        items = (images.to_input(file) for file in found)
        explained = await client.students.explain(
            student, items, version=version, label=label, top=top
        )
        return [*explained]

    results = run(work, address, project)
    if as_json:
        output.print_json(results)
        return
    for result in results:
        _print_explanation(result)


def export(
    student: Student,
    version: Version = "promoted",
    format: Annotated[Format, typer.Option(help="Kind of files.")] = Format.SAFETENSORS,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path(),
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Write a student as files: safetensors with a card, or one ONNX file from image to logits."""

    async def work(client: AsyncClient) -> list[dict[str, Any]]:
        with output.err.status("exporting"):
            files = await client.students.export(student, version, format=_FORMATS[format])
            written = []
            for file in files:
                path = out / Path(file.file_name).name
                size = await client.blobs.save(file.blob.digest, path)
                written.append({"file": str(path), "bytes": size, "sha256": file.blob.digest})
        return written

    written = run(work, address, project)
    if as_json:
        output.print_json(written)
        return
    rows = [(w["file"], output.size(w["bytes"]), w["sha256"][:16]) for w in written]
    output.table(["file", "#size", "sha256"], rows)


def _print_explanation(result: pb.ImageExplanation) -> None:
    if result.WhichOneof("outcome") == "error":
        output.note(f"{result.item_id}: {from_status(result.error).message}")
        return
    found = result.explanation
    title = f"{result.item_id}: {found.label}, logit {found.logit:.3f}"
    rows = [
        (
            c.concept,
            f"{c.contribution:+.3f}",
            f"{c.weight:+.3f}",
            f"{c.presence:.3f}",
            _where(c, result),
        )
        for c in found.contributions
    ]
    rows.append(("(other concepts)", f"{found.rest:+.3f}", "", "", ""))
    rows.append(("(intercept)", f"{found.intercept:+.3f}", "", "", ""))
    output.table(["concept", "#adds", "#weight", "#presence", "where"], rows, title=title)


def _where(item: student_pb2.Contribution, result: pb.ImageExplanation) -> str:
    if item.presence <= 0:
        return "nowhere"
    if item.region <= 0 or item.region >= len(result.boxes):
        return "whole image"
    box = result.boxes[item.region]
    across = _third((box.left + box.right) / 2, ("left", "", "right"))
    down = _third((box.top + box.bottom) / 2, ("upper", "", "lower"))
    area = max(box.right - box.left, 0) * max(box.bottom - box.top, 0)
    return f"{' '.join(filter(None, (down, across))) or 'middle'}, {area:.0%}"


def _third(position: float, words: tuple[str, str, str]) -> str:
    return words[min(int(position * 3), 2)]
