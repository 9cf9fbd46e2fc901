"""What the coverage-guided fuzzer feeds: every decoder as a function of bytes, and where to begin.

Imported with the decoders under instrumentation, by `tests.hostile.fuzz`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from stillhouse.common.v1 import language_pb2, tensor_pb2
from stillhouse.inference.v2 import open_inference_pb2

from services.common import archive, images, names, tensors, verifiers, weights
from services.common.archive import ArchiveError
from services.common.inference.requests import InferCall
from services.common.texts import TextRecord
from services.common.weights import WeightsError
from services.gateway.datasets.text_files import read_rows
from services.gateway.datasets.trees import archive_tree
from tests.common.test_hostile_bytes import DOCUMENTS, SHARDS, refusing
from tests.hostile import files


@dataclass(frozen=True)
class Target:
    """A decoder: it may answer or refuse, and raise nothing else."""

    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    refusals: tuple[type[Exception], ...] = ()

    def __call__(self, data: bytes) -> None:
        refusing(lambda: self.read(data), *self.refusals)


_LIMITS = images.Limits(max_pixels=2_000_000)
_IMAGE = tensors.to_message(tensors.unpack_arrays(SHARDS["views"][1])["logits"])


def _image(data: bytes) -> None:
    images.inspect(data, _LIMITS)
    images.thumbnail(data, 40, _LIMITS, box=(0.1, 0.1, 0.2, 0.9))


def _archive(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        packed, out = Path(name, "packed"), Path(name, "out")
        packed.write_bytes(data)
        try:
            archive.unpack(packed, out, max_bytes=1 << 20, max_files=50)
        finally:
            made = [path for path in Path(name).rglob("*") if path != packed]
            assert all(path.is_relative_to(out) and not path.is_symlink() for path in made)


def _uploaded(data: bytes) -> None:
    """An archive as the gateway reads it: names, images, and texts as streams."""
    tree = archive_tree(lambda: io.BytesIO(data))
    names = tree.names()[0][:20]
    assert all(len(got) <= 1 << 16 for _, got in tree.read(names, 1 << 16) if type(got) is bytes)
    for name, stream in tree.streams(names):
        for _ in itertools.islice(read_rows(name, stream), 100):
            pass


def _text_file(data: bytes) -> None:
    """One file as the text readers know them, by its first byte."""
    name = ("a.jsonl", "a.txt", "a.parquet")[data[0] % 3 if data else 0]
    for _ in itertools.islice(read_rows(name, io.BytesIO(data[1:])), 100):
        pass


def _weights(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        weights.content_digest(Path(file.name))


def _tensor(data: bytes) -> None:
    tensors.from_message(tensor_pb2.Tensor.FromString(data))


def _infer(data: bytes) -> None:
    call = InferCall(open_inference_pb2.ModelInferRequest.FromString(data))
    for name in call.inputs:
        (call.elements if call.datatype(name) == "BYTES" else call.array)(name)


def _name(data: bytes) -> None:
    said = data.decode(errors="replace")
    kinds = (("datasets",), ("models",), ("students", "versions"))[len(said) % 3]
    project, *ids = names.parse(said, *kinds)
    assert names.join(project, *itertools.chain(*zip(kinds, ids, strict=True))) == said


def _verifier(data: bytes) -> None:
    """A verifier, the reference and the answer, each by its length."""
    cut = data[0] if data else 0
    verifier = language_pb2.Verifier.FromString(data[1 : 1 + cut])
    if verifier.WhichOneof("verifier") == "python_tests":
        return  # runs code, in a sandbox with tests of its own
    verifiers.check_verifier(verifier)
    reference, _, answer = data[1 + cut :].decode(errors="replace").partition("\0")
    verifiers.verify(verifier, answer, TextRecord("a", reference=reference))


def _verifier_seeds() -> list[bytes]:
    some = (
        language_pb2.Verifier(regex=language_pb2.RegexVerifier(pattern="(a+)+$")),
        language_pb2.Verifier(numeric=language_pb2.NumericVerifier(tolerance=0.1)),
        language_pb2.Verifier(exact_match=language_pb2.ExactMatchVerifier()),
    )
    packed = [one.SerializeToString() for one in some]
    return [bytes([len(one)]) + one + b"1,000.5\0so it is 1e3" for one in packed]


def _text_archives() -> list[bytes]:
    """A text file in a zip, and in a tar of each compression."""
    texts = {"train/a.jsonl": b'{"text": "a line"}\n'}
    squeezed = (bytes, gzip.compress, bz2.compress, lzma.compress)
    return [files.packed_zip(texts), *(one(files.packed_tar(texts)) for one in squeezed)]


def _infer_seeds() -> list[bytes]:
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor
    images_in = tensor(name="images", datatype="BYTES", shape=[1])
    floats = tensor(name="x", datatype="FP32", shape=[2, 1])
    floats.contents.fp32_contents.extend((1.0, 2.0))
    request = open_inference_pb2.ModelInferRequest
    return [
        request(
            model_name="m", inputs=[images_in], raw_input_contents=[b"\3\0\0\0abc"]
        ).SerializeToString(),
        request(model_name="m", inputs=[floats]).SerializeToString(),
    ]


TARGETS: dict[str, Target] = {
    "image": Target(_image, files.images()),
    "archive": Target(_archive, (*files.archives(), *files.tables()), (ArchiveError,)),
    "uploaded": Target(_uploaded, (*files.archives(), *_text_archives())),
    "text-file": Target(
        _text_file, [bytes([at]) + data for at in range(3) for data in files.tables()]
    ),
    "weights": Target(_weights, files.weights(), (WeightsError,)),
    "tensor": Target(_tensor, [_IMAGE.SerializeToString()], (DecodeError,)),
    "infer": Target(_infer, _infer_seeds(), (DecodeError,)),
    "name": Target(_name, [b"projects/p/datasets/d", b"projects/p/students/s/versions/1"]),
    "verifier": Target(_verifier, _verifier_seeds(), (DecodeError,)),
    **{name.replace(" ", "-"): Target(read, [good]) for name, (read, good) in DOCUMENTS.items()},
    **{name: Target(read, [good]) for name, (read, good) in SHARDS.items()},
}
