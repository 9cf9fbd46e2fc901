"""A student's data as numbers from which its decisions can be computed elsewhere. Blocking."""

from __future__ import annotations

import numpy as np
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.tensors import pack_arrays
from services.student.artefacts import Student
from services.student.library import Library, Table
from services.student.maps import flat_maps


def inspect(
    blobs: BlobStore, library: Library, request: student_pb2.InspectRequest
) -> student_pb2.InspectResponse:
    """Store the arrays of the items of train and val, and name what their rows and columns are.

    Versions tuned from one job share all but the held-out logits, so they share that blob.
    Raises NotFound, InvalidInput, Precondition.
    """
    student = library.student(request.project, request.student)
    table = library.table(request.project, student)
    folds = library.folds(request.project, student, table)
    heldout = folds.logits(table.columns[table.known]).astype("<f4")
    softmax = student.loss == "softmax"
    return student_pb2.InspectResponse(
        arrays=_put(blobs, request.project, _arrays(student, table)),
        heldout=_put(blobs, request.project, pack_arrays({"logits": heldout})),
        items=_items(table),
        classes=student.classes,
        concepts=student.concepts,
        loss=student_pb2.LOSS_SOFTMAX if softmax else student_pb2.LOSS_BCE,
    )


def _put(blobs: BlobStore, project: str, data: bytes) -> items_pb2.BlobRef:
    return items_pb2.BlobRef(digest=blobs.put(project, data), size_bytes=len(data))


def _arrays(student: Student, table: Table) -> bytes:
    concept_map, class_map = flat_maps(student.bank, table.class_regions)
    return pack_arrays(
        {
            "presence": table.presence[table.known],
            "mean": student.mean,
            "std": student.std,
            "responses": table.targets[table.known].astype("<f4"),
            "labels": table.labels.hot[table.known].astype(np.uint8),
            "concept_map": concept_map,
            "class_map": class_map,
        }
    )


def _items(table: Table) -> list[student_pb2.InspectedItem]:
    labels = table.labels
    return [
        student_pb2.InspectedItem(
            item_id=labels.item_ids[row], digest=labels.digests[row], split=str(labels.split[row])
        )
        for row in table.known.tolist()
    ]
