"""The teacher service as a process, on real weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.tensors import from_message, pack_arrays
from tests.support import Service, hostile_batch, photo, resident_mib, service

MODEL = "projects/default/models/efficientnet-lite0"
LOGITS, FEATURES = teacher_pb2.CLASSIFY_OUTPUT_LOGITS, teacher_pb2.CLASSIFY_OUTPUT_FEATURES


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    folder = tmp_path_factory.mktemp("teacher")
    with service("teacher", folder) as running:
        yield running, folder


@pytest.fixture(scope="module")
def stub(teacher: tuple[Service, Path]) -> Iterator[teacher_pb2_grpc.TeacherServiceStub]:
    with grpc.insecure_channel(teacher[0].address) as channel:
        yield teacher_pb2_grpc.TeacherServiceStub(channel)


def _classify(stub, data: list[bytes], **more):  # type: ignore[no-untyped-def]
    items = [items_pb2.ImageInput(item_id=str(n), data=one) for n, one in enumerate(data)]
    return stub.Classify(
        teacher_pb2.ClassifyRequest(model=more.pop("model", MODEL), items=items, **more),
        timeout=120,
    )


def test_every_item_of_a_hostile_batch_gets_its_own_answer(stub, teacher) -> None:  # type: ignore[no-untyped-def]
    before = resident_mib(teacher[0].process.pid)
    batch = hostile_batch()
    reply = _classify(stub, [data for data, _ in batch.values()])
    outcomes = {
        name: one.WhichOneof("outcome") for name, one in zip(batch, reply.results, strict=True)
    }
    assert outcomes == {
        name: "classification" if usable else "error" for name, (_, usable) in batch.items()
    }
    assert {r.error.code for r in reply.results if r.HasField("error")} == {3}
    assert resident_mib(teacher[0].process.pid) < before + 400
    assert _classify(stub, [photo(1)]).results[0].HasField("classification")


def test_a_photo_of_a_palace_is_a_palace(stub) -> None:  # type: ignore[no-untyped-def]
    import io

    from PIL import Image
    from sklearn.datasets import load_sample_image  # a real photo that ships with a library

    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "JPEG", quality=95)
    spec = stub.GetModel(teacher_pb2.GetModelRequest(name=MODEL), timeout=60).model.image_classifier
    logits = from_message(_classify(stub, [buffer.getvalue()]).results[0].classification.logits)
    top = [spec.classes[k] for k in np.argsort(-logits)[:5]]
    assert any("palace" in name for name in top), top


def test_concurrent_single_images_share_batches(stub) -> None:  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda n: _classify(stub, [photo(n)]), range(32)))
    assert max(reply.timings.batch_size for reply in replies) > 1


def test_a_shard_does_not_depend_on_its_neighbours(stub) -> None:  # type: ignore[no-untyped-def]
    data = [photo(n) for n in range(20)]
    alone = _classify(stub, data, execution=items_pb2.EXECUTION_SHARD, outputs=[FEATURES, LOGITS])
    with ThreadPoolExecutor(8) as pool:
        noise = [pool.submit(_classify, stub, [photo(100 + n)] * (n % 5 + 1)) for n in range(12)]
        crowded = _classify(
            stub,
            data[7:] + [b"broken"] + data[:7],
            execution=items_pb2.EXECUTION_SHARD,
            outputs=[FEATURES, LOGITS],
        )
        for one in noise:
            one.result()

    def digests(results) -> list[str]:  # type: ignore[no-untyped-def]
        return [hashlib.sha256(r.classification.features.data).hexdigest() for r in results]

    order = [*crowded.results[14:], *crowded.results[:13]]
    assert digests(order) == digests(alone.results)


def test_a_trained_head_answers_for_its_own_data_out_of_fold(stub, teacher) -> None:  # type: ignore[no-untyped-def]
    blobs = BlobStore(str(teacher[1] / "blobs"))
    seen, new = photo(3), photo(4)
    backbone = stub.GetModel(teacher_pb2.GetModelRequest(name=MODEL), timeout=60).model
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, backbone.image_classifier.feature_dim)).astype(np.float32)
    held_out = np.array([[0.5, -1.0, 2.0]], np.float32)
    head = blobs.put(
        "default",
        pack_arrays(
            {
                "weight": weight,
                "bias": np.array([0, 1, 2], np.float32),
                "crossfit_digests": np.frombuffer(hashlib.sha256(seen).digest(), np.uint8)[None],
                "crossfit_logits": held_out,
            }
        ),
    )
    record = {
        "kind": "linear_head",
        "backbone": "efficientnet-lite0",
        "backbone_digest": backbone.digest,
        "head": head,
        "classes": ["a", "b", "c"],
        "single_label": True,
    }
    blobs.put_ref("default", "models/my-head", json.dumps(record).encode())
    name = "projects/default/models/my-head"
    reply = _classify(stub, [seen, new], model=name, outputs=[LOGITS, FEATURES], cross_fitted=True)
    first, second = (one.classification for one in reply.results)
    assert (first.cross_fitted, second.cross_fitted) == (True, False)
    np.testing.assert_array_equal(from_message(first.logits), held_out[0])
    features = from_message(second.features).astype(np.float32)
    np.testing.assert_allclose(
        from_message(second.logits), features @ weight.T + [0, 1, 2], rtol=1e-2, atol=5e-2
    )
    assert not _classify(stub, [seen], model=name).results[0].classification.cross_fitted
    described = stub.GetModel(teacher_pb2.GetModelRequest(name=name), timeout=60).model
    assert list(described.image_classifier.classes) == ["a", "b", "c"]
    assert described.digest != backbone.digest


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (teacher_pb2.ClassifyRequest(model=MODEL), grpc.StatusCode.INVALID_ARGUMENT),
        (teacher_pb2.ClassifyRequest(model="x"), grpc.StatusCode.INVALID_ARGUMENT),
        (
            teacher_pb2.ClassifyRequest(
                model="projects/default/models/nothing", items=[items_pb2.ImageInput(data=b"x")]
            ),
            grpc.StatusCode.NOT_FOUND,
        ),
        (
            teacher_pb2.ClassifyRequest(model=MODEL, items=[items_pb2.ImageInput(data=b"x")] * 257),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
def test_bad_calls_are_refused(stub, request_, code) -> None:  # type: ignore[no-untyped-def]
    items = request_.items or [items_pb2.ImageInput(data=photo(0))]
    if request_.model == "x":
        request_.items.extend(items)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(request_, timeout=30)
    assert caught.value.code() == code


def test_an_unknown_digest_fails_its_item_only(stub) -> None:  # type: ignore[no-untyped-def]
    items = [items_pb2.ImageInput(digest="0" * 64), items_pb2.ImageInput(data=photo(0))]
    items.append(items_pb2.ImageInput(digest="../../etc/passwd"))
    reply = stub.Classify(teacher_pb2.ClassifyRequest(model=MODEL, items=items), timeout=60)
    assert [r.error.code for r in reply.results] == [5, 0, 3]
