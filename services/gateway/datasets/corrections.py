"""Correct the labels of a dataset: another manifest of the same images, and a row for it.

The images, their order and their splits stay, so whatever was computed from pixels alone is found
again by its digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from google.protobuf import json_format
from sqlalchemy.orm import Session
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as pb

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, Precondition
from services.common.manifest import Manifest
from services.gateway.datasets import records
from services.gateway.store import DatasetRow, Store, answered, record

MAX_CORRECTIONS = 1000
_METHOD = "CorrectLabels"
_SHOWN = 200


def correct(
    store: Store, blobs: BlobStore, source: DatasetRow, request: pb.CorrectLabelsRequest
) -> DatasetRow:
    """Make the corrected dataset, READY at once, or return the one an earlier call made. Blocking.

    Raises InvalidInput with one violation per wrong correction, Precondition where the source is
    not READY, AlreadyExists where the name is taken.
    """
    if source.state != "READY":
        raise Precondition(f"{records.name_of(source)} is {source.state.lower()}, not ready")
    if records.holds_texts(source):
        raise Precondition(f"{records.name_of(source)} holds texts, which have no labels")
    manifest = Manifest.from_bytes(blobs.get(source.project, source.manifest_digest))
    data = corrected(manifest, request.corrections).to_bytes()
    digest = blobs.put(source.project, data)
    result = json_format.Parse(source.result_json, pb.Dataset())
    result.manifest.CopyFrom(items_pb2.BlobRef(digest=digest, size_bytes=len(data)))
    result.corrected_from = records.name_of(source)
    return store.change(lambda session: _keep(session, source, request, result))


def corrected(manifest: Manifest, corrections: Sequence[pb.LabelCorrection]) -> Manifest:
    """Return the manifest with other labels. Raises InvalidInput, a violation per correction."""
    if not 1 <= len(corrections) <= MAX_CORRECTIONS:
        raise InvalidInput(f"corrections: 1 to {MAX_CORRECTIONS:,} are needed", field="corrections")
    classes = {name: at for at, name in enumerate(manifest.classes)}
    places = {item.item_id: at for at, item in enumerate(manifest.items)}
    items, wrong, met = list(manifest.items), [], set[str]()
    for at, one in enumerate(corrections):
        problem = _problem(one, classes, places, met, multi_label=manifest.multi_label)
        met.add(one.item_id)
        if problem:
            field, why = problem
            wrong.append((f"corrections[{at}].{field}", why))
            continue
        labels = tuple(sorted({classes[label] for label in one.labels}))
        items[places[one.item_id]] = replace(items[places[one.item_id]], labels=labels)
    if wrong:
        field, why = wrong[0]
        more = f", and {len(wrong) - 1} more corrections" if len(wrong) > 1 else ""
        raise InvalidInput(f"{field}: {why}{more}", field=field, violations=wrong)
    return replace(manifest, items=tuple(items))


def _problem(
    one: pb.LabelCorrection,
    classes: dict[str, int],
    places: dict[str, int],
    met: set[str],
    *,
    multi_label: bool,
) -> tuple[str, str] | None:
    """Return what is wrong with a correction: the field and why; None where nothing is."""
    if one.item_id not in places:
        return "item_id", f"the dataset has no item {one.item_id[:_SHOWN]!r}"
    if one.item_id in met:
        return "item_id", f"{one.item_id[:_SHOWN]!r} is corrected twice"
    unknown = [label for label in one.labels if label not in classes]
    if unknown:
        return "labels", f"the dataset has no class {unknown[0][:_SHOWN]!r}"
    if not one.labels:
        return "labels", f"{one.item_id[:_SHOWN]!r} needs a label"
    if not multi_label and len(set(one.labels)) != 1:
        return "labels", f"{one.item_id[:_SHOWN]!r} needs exactly one label"
    return None


def _keep(
    session: Session, source: DatasetRow, request: pb.CorrectLabelsRequest, result: pb.Dataset
) -> DatasetRow:
    body = request.SerializeToString(deterministic=True)
    key = (source.project, request.request_id, _METHOD, body)
    if (old := answered(session, *key)) is not None:
        return session.get_one(DatasetRow, int(old))
    row = records.claim(session, source.project, request.dataset_id)
    row.state, row.source_json = "READY", json_format.MessageToJson(request, indent=None)
    row.item_count, row.manifest_digest = source.item_count, result.manifest.digest
    row.result_json = json_format.MessageToJson(result, indent=None)
    session.add(row)
    session.flush()
    record(session, *key, response=str(row.pk).encode())
    return row
