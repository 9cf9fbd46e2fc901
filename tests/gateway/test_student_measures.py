"""EvaluateStudentVersion and InspectStudentVersion, against numbers computed from the data."""

from __future__ import annotations

import numpy as np
import pytest
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput, NotFound
from services.common.tensors import unpack_arrays
from services.gateway.student_files import StudentFiles
from tests.gateway.student_world import CLASSES, CONCEPTS, FRUIT, Gateway, N, refused, up


def evaluate(version: str = "head", split: str = "") -> pb.EvaluateStudentVersionRequest:
    return pb.EvaluateStudentVersionRequest(name=f"{FRUIT}/versions/{version}", split=split)


async def test_evaluation_is_that_of_compare(gateway: Gateway) -> None:
    await gateway.stub.TuneStudent(up())
    found = await gateway.stub.EvaluateStudentVersion(evaluate())
    compared = await gateway.stub.CompareStudentVersions(
        pb.CompareStudentVersionsRequest(student=FRUIT, first_version="1", second_version="2")
    )
    assert dict(found.metrics) == dict(compared.second_metrics)
    assert found.item_count == N * 4 // 5
    assert {"fidelity", "accuracy", *(f"recall/{name}" for name in CLASSES)} <= set(found.metrics)
    assert not found.undefined
    first = await gateway.stub.EvaluateStudentVersion(evaluate("promoted"))
    assert dict(first.metrics) == dict(compared.first_metrics)


async def test_the_test_split_is_scored_by_the_weights_themselves(gateway: Gateway) -> None:
    """Accuracy again, from predictions of the same photos."""
    found = await gateway.stub.EvaluateStudentVersion(evaluate("1", "test"))
    chosen = [name for n, name in enumerate(gateway.world.photos) if n // 3 % 5 == 4]
    digests = dict(zip(gateway.world.photos, gateway.world.regions, strict=True))
    items = [{"item_id": name, "digest": digests[name]} for name in chosen]
    request = pb.PredictImagesRequest(student=FRUIT, items=items, version="1")
    results = (await gateway.stub.PredictImages(request)).results
    right = [one.prediction.label == CLASSES[gateway.world.labels[one.item_id]] for one in results]
    assert found.item_count == len(right)
    assert found.metrics["accuracy"].value == pytest.approx(np.mean(right))
    assert found.metrics["accuracy"].low <= np.mean(right) <= found.metrics["accuracy"].high
    version = await gateway.version("1")
    assert found.nec == pytest.approx(np.mean([len(c.concepts) for c in version.class_concepts]))


async def test_inspection_is_enough_to_decide(gateway: Gateway) -> None:
    """Weights of GetStudentVersion on the inspected arrays find the classes of most photos."""
    await gateway.stub.TuneStudent(up())
    found = await gateway.stub.InspectStudentVersion(
        pb.InspectStudentVersionRequest(name=f"{FRUIT}/versions/head")
    )
    assert found.version == f"{FRUIT}/versions/2"
    data = found.data
    assert (tuple(data.classes), tuple(data.concepts)) == (CLASSES, CONCEPTS)
    assert data.loss == student_pb2.LOSS_SOFTMAX
    assert {one.split for one in data.items} == {"train", "val"}
    assert len(data.items) == N * 4 // 5
    blobs, version = gateway.world.blobs, await gateway.version()
    arrays = unpack_arrays(blobs.get("default", data.arrays.digest))
    ref = version.student_ref
    file = StudentFiles(blobs).load("default", ref.weights_digest, ref.card_digest)
    columns = (arrays["presence"] - arrays["mean"]) / arrays["std"]
    decided = (columns @ file.weight.T + file.bias).argmax(axis=1)
    truth = [gateway.world.labels[one.item_id] for one in data.items]
    assert arrays["labels"].argmax(axis=1).tolist() == truth
    assert np.mean(decided == truth) > 0.8
    request = pb.InspectStudentVersionRequest(name=f"{FRUIT}/versions/1")
    first = (await gateway.stub.InspectStudentVersion(request)).data
    assert (first.arrays, list(first.items)) == (data.arrays, list(data.items))
    assert first.heldout != data.heldout


async def test_measures_of_what_is_not_there(gateway: Gateway) -> None:
    stub = gateway.stub
    missing = pb.InspectStudentVersionRequest(name=f"{FRUIT}/versions/9")
    assert isinstance(await refused(stub.InspectStudentVersion(missing)), NotFound)
    assert isinstance(await refused(stub.EvaluateStudentVersion(evaluate("9"))), NotFound)
    for request in (evaluate("1", "all"), pb.EvaluateStudentVersionRequest(name=FRUIT)):
        assert isinstance(await refused(stub.EvaluateStudentVersion(request)), InvalidInput)
