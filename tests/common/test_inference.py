"""The Open Inference Protocol's tensors, requests, names and counters, against bytes made by
hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common.errors import InvalidInput, Unsupported
from services.common.images import Limits, decode
from services.common.inference.images import ImageLimits, read_images
from services.common.inference.names import parse_model_name
from services.common.inference.requests import InferCall
from services.common.inference.responses import Output, respond
from services.common.inference.statistics import Spent, Statistics
from services.common.inference.tensors import array_of, elements_of, raw_array, raw_elements

LIMITS = ImageLimits(Limits(max_bytes=4000, max_pixels=1000), max_items=4)


def tensor(
    datatype: str, shape: list[int], *, name: str = "images", **contents: list[object]
) -> pb.ModelInferRequest.InferInputTensor:
    made = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(pb.InferTensorContents(**contents))  # type: ignore[arg-type]
    return made


def prefixed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def call(*inputs: pb.ModelInferRequest.InferInputTensor, **fields: object) -> InferCall:
    return InferCall(pb.ModelInferRequest(model_name="m", inputs=inputs, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("datatype", "field", "dtype"),
    [
        ("BOOL", "bool_contents", "?"),
        ("UINT8", "uint_contents", "u1"),
        ("INT8", "int_contents", "i1"),
        ("INT16", "int_contents", "<i2"),
        ("INT64", "int64_contents", "<i8"),
        ("UINT64", "uint64_contents", "<u8"),
        ("FP32", "fp32_contents", "<f4"),
        ("FP64", "fp64_contents", "<f8"),
    ],
)
def test_typed_and_raw_contents_say_the_same(datatype: str, field: str, dtype: str) -> None:
    wanted = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    typed = tensor(datatype, [2, 3], **{field: wanted.ravel().tolist()})
    np.testing.assert_array_equal(array_of(typed, None), wanted)
    np.testing.assert_array_equal(array_of(tensor(datatype, [2, 3]), wanted.tobytes()), wanted)
    assert raw_array(wanted) == (datatype, wanted.tobytes())


def test_half_precision_is_raw_alone() -> None:
    wanted = np.array([1.5, -2], "<f2")
    np.testing.assert_array_equal(array_of(tensor("FP16", [2]), wanted.tobytes()), wanted)
    with pytest.raises(InvalidInput, match="raw"):
        array_of(tensor("FP16", [2], fp32_contents=[1.5, -2]), None)


@pytest.mark.parametrize(
    ("message", "raw", "why"),
    [
        (tensor("FP32", [2]), b"\0" * 7, "needs 8 bytes"),
        (tensor("FP32", [-1]), b"", "not valid"),
        (tensor("FP32", [1] * 9), b"\0" * 4, "not valid"),
        (tensor("FP32", [1 << 62, 1 << 62]), b"\0" * 4, "needs"),
        (tensor("BF16", [2]), b"\0" * 4, "data type"),
        (tensor("FP32", [1]), np.array([np.nan], "<f4").tobytes(), "NaN"),
        (tensor("FP16", [1]), np.array([np.inf], "<f2").tobytes(), "NaN"),
        (tensor("UINT8", [1], uint_contents=[256]), None, "has not"),
        (tensor("INT8", [1], int_contents=[-129]), None, "has not"),
        (tensor("FP32", [2], fp32_contents=[1.0]), None, "needs 2 values"),
        (tensor("FP32", [1], fp64_contents=[1.0]), None, "fp32_contents alone"),
        (tensor("FP32", [1 << 40]), None, "needs"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    message: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        array_of(message, raw)


def test_bytes_have_their_lengths_before_them() -> None:
    elements = [b"one", b"", b"\0three"]
    assert raw_elements(elements) == prefixed(*elements)
    assert elements_of(tensor("BYTES", [3]), prefixed(*elements)) == elements
    assert elements_of(tensor("BYTES", [3, 1], bytes_contents=[*elements]), None) == elements


@pytest.mark.parametrize(
    ("shape", "raw"),
    [
        ([1 << 50], prefixed(b"a")),
        ([2], prefixed(b"a")),
        ([1], prefixed(b"a") + b"x"),
        ([1], struct.pack("<I", 0xFFFFFFFF) + b"a"),
        ([2], struct.pack("<I", 5) + b"abcde\1\0"),
        ([0], b"abc"),
    ],
)
def test_bytes_whose_lengths_lie_are_refused(shape: list[int], raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        elements_of(tensor("BYTES", shape), raw)


def test_a_request_is_checked_as_a_whole() -> None:
    one = tensor("UINT8", [1], name="a")
    for wrong in (
        {"inputs": [one, one]},
        {"inputs": [one], "raw_input_contents": [b"\0", b"\0"]},
        {"inputs": [tensor("UINT8", [1], uint_contents=[1])], "raw_input_contents": [b"\0"]},
        {"outputs": [pb.ModelInferRequest.InferRequestedOutputTensor(name="x")] * 2},
        {"inputs": [tensor("UINT8", [1], name=str(n)) for n in range(65)]},
    ):
        with pytest.raises(InvalidInput):
            InferCall(pb.ModelInferRequest(**wrong))  # type: ignore[arg-type]
    one.parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported):
        call(one)


def test_an_unknown_output_names_the_nearest() -> None:
    asked = call(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="logit")])
    with pytest.raises(InvalidInput, match="did you mean logits"):
        asked.check_outputs(["logits", "embeddings"])


@pytest.mark.parametrize(
    ("name", "resource", "short"),
    [
        ("m", "projects/default/models/m", "m"),
        ("p/m", "projects/p/models/m", "p/m"),
        ("students/s", "projects/default/students/s", "students/s"),
        ("p/students/s", "projects/p/students/s", "p/students/s"),
        ("projects/p/models/m", "projects/p/models/m", "p/m"),
        ("projects/default/students/s", "projects/default/students/s", "students/s"),
        ("projects/students/models/m", "projects/students/models/m", "projects/students/models/m"),
    ],
)
def test_names_mean_what_they_say(name: str, resource: str, short: str) -> None:
    found = parse_model_name(name)
    assert (found.resource, found.short) == (resource, short)
    assert parse_model_name(found.short) == found


@pytest.mark.parametrize("name", ["", "/", "a/b/c", "../m", "p/m/", "projects/p/jobs/j", "M"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        parse_model_name(name)


async def test_pixels_become_the_same_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 10, 7, 3), np.uint8)
    items = await read_images(
        call(tensor("UINT8", [2, 10, 7, 3]), raw_input_contents=[pixels.tobytes()]), LIMITS
    )
    for item, wanted in zip(items, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(decode(item.data)), wanted)


@pytest.mark.parametrize(
    "message",
    [
        tensor("UINT8", [1, 2, 2, 4], uint_contents=[0] * 16),
        tensor("UINT8", [2, 2, 3], uint_contents=[0] * 12),
        tensor("UINT8", [1, 0, 2, 3]),
        tensor("UINT8", [1, 100, 100, 3]),
        tensor("FP32", [1, 1, 1, 3], fp32_contents=[0.0] * 3),
        tensor("BYTES", [5], bytes_contents=[b"x"] * 5),
        tensor("BYTES", [0]),
        tensor("BYTES", [1, 2], bytes_contents=[b"x"] * 2),
        tensor("BYTES", [1], name="image", bytes_contents=[b"x"]),
    ],
)
async def test_images_over_the_limits_are_refused(
    message: pb.ModelInferRequest.InferInputTensor,
) -> None:
    with pytest.raises(InvalidInput):
        await read_images(call(message), LIMITS)


def test_a_response_has_what_is_asked_for_in_its_order() -> None:
    asked = pb.ModelInferRequest.InferRequestedOutputTensor
    logits = np.array([[0.5, 2.0, -1.0], [3.0, 0.0, 1.0]], np.float32)
    outputs = [Output.numbers("logits", logits), Output.texts("words", [["a"], ["bc"]])]
    best = asked(name="logits")
    best.parameters["classification"].int64_param = 2
    response = respond(
        call(outputs=[asked(name="words"), best], id="7"), "v", outputs, ["x", "y", "z"]
    )
    assert (response.id, response.model_version) == ("7", "v")
    assert [(one.name, one.datatype, list(one.shape)) for one in response.outputs] == [
        ("words", "BYTES", [2, 1]),
        ("logits", "BYTES", [2, 2]),
    ]
    assert response.raw_output_contents[0] == prefixed(b"a", b"bc")
    assert response.raw_output_contents[1] == prefixed(
        b"2.000000:1:y", b"0.500000:0:x", b"3.000000:0:x", b"1.000000:2:z"
    )
    everything = respond(call(), "v", outputs, [])
    assert everything.raw_output_contents[0] == logits.tobytes()
    with pytest.raises(InvalidInput, match="one number per class"):
        respond(call(outputs=[best]), "v", outputs, ["x", "y"])


def test_counters_tell_what_calls_cost() -> None:
    counters = Statistics()
    timings = items_pb2.Timings(queue_ms=1, preprocess_ms=2, compute_ms=4, batch_size=4)
    counters.succeeded("m", "1", Spent(10, 9_000_000, 500_000, timings))
    counters.succeeded("m", "1", Spent(4, 7_000_000, 500_000, timings))
    counters.failed("m", "1", 3_000_000)
    counters.failed("n", "", 1)
    (one,) = counters.of("m", "")
    stats = one.inference_stats
    assert (one.inference_count, one.execution_count) == (14, 4)
    assert (stats.success.count, stats.success.ns) == (2, 16_000_000)
    assert (stats.fail.count, stats.fail.ns) == (1, 3_000_000)
    assert (stats.queue.ns, stats.compute_infer.ns) == (2_000_000, 8_000_000)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in one.batch_stats] == [(4, 2)]
    assert [one.name for one in counters.of("", "")] == ["m", "n"]
