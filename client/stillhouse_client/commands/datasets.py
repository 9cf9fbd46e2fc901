"""`stillhouse datasets`: add, list, show, correct."""

from __future__ import annotations

import csv
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, run
from stillhouse_client.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="Labelled photos, or texts, that jobs learn from.")


class Kind(StrEnum):
    """What a dataset holds."""

    IMAGES = "images"
    TEXTS = "texts"


_KINDS = {Kind.IMAGES: pb.DATASET_KIND_IMAGES, Kind.TEXTS: pb.DATASET_KIND_TEXTS}
_TEXTS = (".jsonl", ".txt")
_STATES = {
    pb.DATASET_STATE_CREATING: "being read",
    pb.DATASET_STATE_READY: "ready",
    pb.DATASET_STATE_FAILED: "failed",
}


@app.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of class folders, archive, parquet file, .jsonl or .txt texts (these are "
            "uploaded), or a URI that the server reads: file:///..., s3://..., builtin:fruit-fine."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name; without it, the source's.")] = "",
    kind: Annotated[
        Kind | None, typer.Option(help="What it holds; .jsonl and .txt are texts, else images.")
    ] = None,
    max_items: Annotated[int, typer.Option(min=0, help="At most this many items.")] = 0,
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the test split.")] = 0,
    val_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the validation split.")
    ] = 0,
    wait: Annotated[bool, typer.Option(help="Wait until it is read.")] = True,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Add a dataset of images or texts from a local path or a URI."""
    holds = kind or _found_kind(source)

    async def work(client: AsyncClient) -> pb.Dataset:
        uri, archive = source, None
        if not _is_uri(source):
            uri, archive = "", await _upload(client, Path(source))
        dataset = await client.datasets.create(
            name or _name_of(source),
            uri=uri,
            archive=archive,
            test_share=test_share,
            val_share=val_share,
            max_items=max_items,
            kind=_KINDS[holds],
        )
        if not wait:
            return dataset
        with output.err.status(f"reading {dataset.name}") as status:
            return await client.datasets.wait(
                dataset.name,
                progress=lambda d: status.update(f"reading {d.name}: {d.item_count} {_items(d)}"),
            )

    _print(run(work, address, project), as_json=as_json)


@app.command("list")
def list_(
    address: Address = "", project: Project = names.DEFAULT_PROJECT, as_json: Json = False
) -> None:
    """List datasets, newest first."""

    async def work(client: AsyncClient) -> list[pb.Dataset]:
        return [*await client.datasets.list()]

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (names.last(d.name), _kind(d), _STATES.get(d.state, "?"), _holds(d), *_splits(d))
        for d in found
    ]
    output.table(["name", "kind", "state", "holds", "#train", "#val", "#test"], rows)


@app.command()
def show(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset.")],
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show a dataset: classes or fields, splits, rejected files, near-duplicates across splits."""

    async def work(client: AsyncClient) -> pb.Dataset:
        return await client.datasets.get(dataset)

    _print(run(work, address, project), as_json=as_json)


@app.command()
def correct(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset; it stays as it is.")],
    name: Annotated[str, typer.Option("--name", help="Name of the corrected dataset.")],
    item: Annotated[
        list[str] | None, typer.Option(help="ITEM=CLASS, or ITEM=CLASS,CLASS; repeatable.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="CSV: an item, then its classes."),
    ] = None,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Make a dataset with other labels for some images; images and splits stay."""
    found = corrections(item or [], table)

    async def work(client: AsyncClient) -> pb.Dataset:
        return await client.datasets.correct(dataset, name, found)

    _print(run(work, address, project), as_json=as_json)


def corrections(items: list[str], table: Path | None) -> dict[str, list[str]]:
    """Return labels by item, of `ITEM=CLASS,CLASS` texts and the rows of a CSV file.

    Raises InvalidRequest for what is neither, and for an item that is there twice.
    """
    rows = [(one, *one.rpartition("=")[::2]) for one in items]
    pairs = [(text, item, labels.split(",")) for text, item, labels in rows]
    if table is not None:
        with table.open(encoding="utf-8-sig", newline="") as file:
            pairs += [(",".join(row), row[0], row[1:]) for row in csv.reader(file) if row]
    found: dict[str, list[str]] = {}
    for text, item, labels in pairs:
        kept = [label.strip() for label in labels if label.strip()]
        if not item or not kept:
            raise InvalidRequest(f"{text!r} is not an item with its classes")
        if item in found:
            raise InvalidRequest(f"{item!r} is corrected twice")
        found[item] = kept
    if not found:
        raise InvalidRequest("nothing to correct", hint="--item apples/07.jpg=Pear, or --from")
    return found


def _found_kind(source: str) -> Kind:
    path = Path(source)
    found = [source]
    if not _is_uri(source) and path.is_dir():
        found = [file.name for file in path.iterdir() if not file.name.startswith(".")]
    if not found or not all(name.lower().endswith(_TEXTS) for name in found):
        return Kind.IMAGES
    output.note(f"{source} holds texts; say --kind images where it does not")
    return Kind.TEXTS


def _is_uri(source: str) -> bool:
    return "://" in source or source.startswith("builtin:")


def _name_of(source: str) -> str:
    if source.startswith("builtin:"):
        return names.slug(source.removeprefix("builtin:"))
    return names.slug(Path(source.rstrip("/")).name.split(".")[0])


async def _upload(client: AsyncClient, path: Path) -> items_pb2.BlobRef:
    columns = (
        TextColumn("uploading {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=output.err, transient=True) as bars:
        task = bars.add_task(path.name, total=None)

        def progress(sent: int, total: int) -> None:
            bars.update(task, completed=sent, total=total)

        return await client.datasets.upload(path, progress=progress)


def _splits(dataset: pb.Dataset) -> list[str]:
    return [str(dataset.split_counts.get(split, 0)) for split in ("train", "val", "test")]


def _print(dataset: pb.Dataset, *, as_json: bool) -> None:
    if as_json:
        output.print_json(dataset)
        return
    train, val, test = _splits(dataset)
    output.pairs(
        [
            ("dataset", dataset.name),
            ("kind", _kind(dataset)),
            ("state", _STATES.get(dataset.state, "?")),
            (_items(dataset), f"{dataset.item_count} (train {train}, val {val}, test {test})"),
            *_details(dataset),
            ("not readable", str(dataset.rejected_count)),
            ("near-duplicates across splits", str(dataset.cross_split_duplicate_count)),
        ]
    )
    if dataset.corrected_from:
        output.note(f"  corrected from {dataset.corrected_from}")
    for item in dataset.rejected[:10]:
        output.note(f"  {item.path}: {item.reason}")
    for pair in dataset.cross_split_duplicates[:5]:
        same = "text" if _is_text(dataset) else "photo"
        output.note(f"  {pair.first_item} and {pair.second_item} are nearly the same {same}")


def _details(dataset: pb.Dataset) -> list[tuple[str, str]]:
    if _is_text(dataset):
        return [("fields", _holds(dataset))]
    return [
        ("classes", f"{len(dataset.classes)}: {', '.join(dataset.classes[:30])}"),
        ("labels", "several per image" if dataset.multi_label else "one per image"),
    ]


def _is_text(dataset: pb.Dataset) -> bool:
    return dataset.kind == pb.DATASET_KIND_TEXTS


def _kind(dataset: pb.Dataset) -> str:
    return "texts" if _is_text(dataset) else "images"


def _items(dataset: pb.Dataset) -> str:
    return "records" if _is_text(dataset) else "images"


def _holds(dataset: pb.Dataset) -> str:
    if _is_text(dataset):
        return ", ".join(f"{count} {name}" for name, count in sorted(dataset.field_counts.items()))
    return f"{len(dataset.classes)} classes"
