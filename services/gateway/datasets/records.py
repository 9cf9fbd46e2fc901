"""Rows of datasets: made, moved from CREATING to READY or FAILED, and shown as messages."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, cast

from google.protobuf import json_format, timestamp_pb2
from google.rpc import status_pb2
from sqlalchemy import CursorResult, Select, select, update
from sqlalchemy.orm import Session
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as pb

from services.common import names
from services.common.errors import AlreadyExists, Cancelled, NotFound
from services.gateway.datasets.ingest import Ingested
from services.gateway.datasets.text_ingest import TextIngested
from services.gateway.paging import Page
from services.gateway.store import DatasetRow, Store, answered, by_name, record

_METHOD = "CreateDataset"
_BY_NAME = by_name(DatasetRow, DatasetRow.dataset_id)
_KEPT_RESULTS = 128
"""Rows whose texts are kept parsed; a dataset lists what it refused, so some are long."""


def name_of(row: DatasetRow) -> str:
    """Return the resource name."""
    return names.join(row.project, "datasets", row.dataset_id)


def create(store: Store, request: pb.CreateDatasetRequest) -> tuple[DatasetRow, bool]:
    """Insert a CREATING dataset; return (row, whether it is new).

    The same `request_id` with the same body returns the row already there; a FAILED dataset may be
    created again. Raises AlreadyExists, InvalidInput.
    """
    return store.change(lambda session: _create(session, request))


def _create(session: Session, request: pb.CreateDatasetRequest) -> tuple[DatasetRow, bool]:
    body = request.SerializeToString(deterministic=True)
    key = (request.project, request.request_id, _METHOD, body)
    if (old := answered(session, *key)) is not None:
        return session.get_one(DatasetRow, int(old)), False
    row = claim(session, request.project, request.dataset_id)
    row.state, row.source_json = "CREATING", json_format.MessageToJson(request, indent=None)
    row.item_count, row.manifest_digest, row.result_json = 0, "", "{}"
    session.add(row)
    session.flush()
    record(session, *key, response=str(row.pk).encode())
    return row, True


def claim(session: Session, project: str, dataset_id: str) -> DatasetRow:
    """Return a row for a new dataset: that of a FAILED one of the same name, or one of its own.

    Raises AlreadyExists where the name is taken.
    """
    row = session.scalars(_select(project, dataset_id).with_for_update()).first()
    if row is not None and row.state != "FAILED":
        raise AlreadyExists(
            f"dataset {name_of(row)} exists already; take another dataset_id",
            resource=name_of(row),
        )
    return row or DatasetRow(project=project, dataset_id=dataset_id)


def get(store: Store, project: str, dataset_id: str) -> DatasetRow:
    """Return a dataset's row. Raises NotFound."""
    with store.read() as session:
        row = session.scalars(_select(project, dataset_id)).first()
    if row is None:
        raise missing(project, dataset_id)
    return row


def missing(project: str, dataset_id: str) -> NotFound:
    """Return the error of a dataset that does not exist."""
    name = names.join(project, "datasets", dataset_id)
    return NotFound(f"there is no dataset {name}", resource=name)


def get_many(store: Store, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], DatasetRow]:
    """Return the datasets of these (project, dataset id)."""
    return cast("dict[tuple[str, str], DatasetRow]", store.fetch_many(_BY_NAME, keys))


def by_pk(store: Store, pk: int) -> DatasetRow:
    """Return a row by key. Raises NotFound."""
    with store.read() as session:
        row = session.get(DatasetRow, pk)
    if row is None:
        raise NotFound(f"there is no dataset number {pk}")
    return row


def list_page(store: Store, project: str, page: Page) -> tuple[list[DatasetRow], str]:
    """Return one page of a project's datasets, newest first, and the next page's token."""
    query = select(DatasetRow).where(DatasetRow.project == project)
    if page.position:
        query = query.where(DatasetRow.pk < page.position)
    with store.read() as session:
        rows = session.scalars(query.order_by(DatasetRow.pk.desc()).limit(page.size + 1)).all()
    return page.cut(rows, [row.pk for row in rows])


def unfinished(store: Store) -> list[int]:
    """Return the keys of datasets that are being read, oldest first."""
    query = select(DatasetRow.pk).where(DatasetRow.state == "CREATING").order_by(DatasetRow.pk)
    with store.read() as session:
        return list(session.scalars(query))


def set_progress(store: Store, pk: int, done: int) -> None:
    """Note how many items a CREATING dataset has read.

    Raises Cancelled where it is not CREATING any more: its project was deleted, or another has
    ended it.
    """
    query = update(DatasetRow).where(DatasetRow.pk == pk, DatasetRow.state == "CREATING")
    with store.write() as session:
        found = cast("CursorResult[Any]", session.execute(query.values(item_count=done)))
    if not found.rowcount:
        raise Cancelled(f"dataset number {pk} is not being read any more")


def finish(store: Store, pk: int, ingested: Ingested | TextIngested) -> None:
    """Make a CREATING dataset READY; one that is not CREATING any more stays as it is."""
    if isinstance(ingested, TextIngested):
        _end(store, pk, "READY", _of_texts(ingested), ingested.item_count)
    else:
        _end(store, pk, "READY", _of_images(ingested), len(ingested.manifest.items))


def _of_images(ingested: Ingested) -> pb.Dataset:
    return pb.Dataset(
        manifest=items_pb2.BlobRef(
            digest=ingested.manifest_digest, size_bytes=ingested.manifest_bytes
        ),
        classes=ingested.manifest.classes,
        multi_label=ingested.manifest.multi_label,
        split_counts=ingested.split_counts,
        rejected=[pb.RejectedItem(path=r.path, reason=r.reason) for r in ingested.rejected],
        rejected_count=ingested.rejected_count,
        cross_split_duplicates=[
            pb.DuplicatePair(first_item=a, second_item=b, distance=distance)
            for a, b, distance in ingested.duplicates
        ],
        cross_split_duplicate_count=ingested.duplicate_count,
    )


def _of_texts(ingested: TextIngested) -> pb.Dataset:
    return pb.Dataset(
        manifest=items_pb2.BlobRef(
            digest=ingested.manifest_digest, size_bytes=ingested.manifest_bytes
        ),
        split_counts=ingested.split_counts,
        field_counts=ingested.manifest.field_counts,
        rejected=[pb.RejectedItem(path=r.path, reason=r.reason) for r in ingested.rejected],
        rejected_count=ingested.rejected_count,
        cross_split_duplicates=[
            pb.DuplicatePair(first_item=a, second_item=b) for a, b in ingested.leaks
        ],
        cross_split_duplicate_count=ingested.leak_count,
    )


def fail(store: Store, pk: int, error: status_pb2.Status) -> None:
    """Make a CREATING dataset FAILED."""
    plain = status_pb2.Status(code=error.code, message=error.message)
    _end(store, pk, "FAILED", pb.Dataset(error=plain), 0)


def to_message(row: DatasetRow) -> pb.Dataset:
    """Return the message of a row."""
    message = pb.Dataset.FromString(_result(row.result_json))
    message.name = name_of(row)
    message.state = pb.DatasetState.Value(f"DATASET_STATE_{row.state}")
    texts = holds_texts(row)
    message.kind = pb.DATASET_KIND_TEXTS if texts else pb.DATASET_KIND_IMAGES
    message.item_count = row.item_count
    message.create_time.CopyFrom(to_timestamp(row.created))
    return message


@functools.lru_cache(maxsize=_KEPT_RESULTS)
def _result(text: str) -> bytes:
    """Return a stored result as the message's bytes, which are read ten times faster."""
    return json_format.Parse(text, pb.Dataset()).SerializeToString()


def holds_texts(row: DatasetRow) -> bool:
    """Return whether a dataset holds texts, as it was asked for; images otherwise."""
    return _kind(row.source_json) == "DATASET_KIND_TEXTS"


@functools.lru_cache(maxsize=_KEPT_RESULTS)
def _kind(source_json: str) -> str:
    return str(json.loads(source_json).get("kind", ""))


def to_timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Return seconds since 1970 as a message."""
    return timestamp_pb2.Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e6) * 1000)


def _select(project: str, dataset_id: str) -> Select[DatasetRow]:
    return select(DatasetRow).where(
        DatasetRow.project == project, DatasetRow.dataset_id == dataset_id
    )


def _end(store: Store, pk: int, state: str, result: pb.Dataset, items: int) -> None:
    text = json_format.MessageToJson(result, indent=None)
    query = update(DatasetRow).where(DatasetRow.pk == pk, DatasetRow.state == "CREATING")
    values = {"state": state, "result_json": text, "item_count": items}
    if result.manifest.digest:
        values["manifest_digest"] = result.manifest.digest
    with store.write() as session:
        session.execute(query.values(**values))
