"""A classifier in another server: photos to its tensors, its tensors to logits, and a digest of
all that is known of it.

Its features stay there, and what it does not tell of itself nobody notices: another model under the
same name, version and metadata has the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image
from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common import images
from services.common.catalogue import RemoteClassifier
from services.common.errors import InvalidInput, Precondition
from services.common.inference import tensors
from services.common.tensors import Array
from services.torch_common.imagenet import imagenet_class_names
from services.torch_common.preprocess import Preprocessing

TensorMetadata: TypeAlias = pb.ModelMetadataResponse.TensorMetadata
_TINY = 1e-12
_DATATYPES = {"encoded": tensors.BYTES, "uint8": "UINT8", "fp32": "FP32"}


class RemoteTensors:
    """What an entry sends and gets. Does not change; safe from any thread."""

    def __init__(self, entry: RemoteClassifier, limits: images.Limits) -> None:
        self.entry, self._limits = entry, limits
        known = entry.classes
        self.classes = imagenet_class_names() if isinstance(known, str) else known
        self.preprocessing = Preprocessing.from_spec(entry.input) if entry.input else None

    @property
    def sends_pixels(self) -> bool:
        """Whether images are resized and cropped here."""
        return self.preprocessing is not None

    @property
    def _channels_first(self) -> bool:
        return self.entry.input_layout == "nchw"

    def of_bytes(self, data: bytes) -> bytes:
        """Return an image's raw elements. Raises ImageError; pixels that are not read here may
        still be damaged."""
        if self.preprocessing is None:
            images.inspect(data, self._limits)
            return data
        return self.of_square(self.preprocessing.pixels(images.decode(data, self._limits)))

    def of_square(self, square: Image.Image) -> bytes:
        """Return the raw elements of the RGB square that the model sees."""
        assert self.preprocessing is not None
        if self.entry.input_format == "uint8":
            pixels = np.array(square, np.uint8)
        else:
            pixels = self.preprocessing.normalise(square).permute(1, 2, 0).numpy()
        if self._channels_first:
            pixels = pixels.transpose(2, 0, 1)
        return tensors.raw_array(pixels)[1]

    def request(
        self, items: Sequence[bytes], metadata: pb.ModelMetadataResponse
    ) -> pb.ModelInferRequest:
        """Return the request for some images' raw elements."""
        raw = b"".join(items) if self.sends_pixels else tensors.raw_elements(list(items))
        request = pb.ModelInferRequest(raw_input_contents=[raw])
        request.inputs.add(
            name=self.entry.input_name,
            datatype=_DATATYPES[self.entry.input_format],
            shape=self._shape(len(items), metadata),
        )
        request.outputs.add(name=self.entry.output_name)
        return request

    def logits(self, response: pb.ModelInferResponse, count: int) -> Array:
        """Return logits [count, K] float32. Raises Precondition where the answer is not that."""
        try:
            found = self._output(response)
        except InvalidInput as error:
            raise self._mismatch(f"the answer is not understood: {error.message}") from None
        wanted = (count, len(self.classes))
        if found.size != wanted[0] * wanted[1] or found.shape[:1] != wanted[:1]:
            raise self._mismatch(f"it gives {list(found.shape)}, expected {list(wanted)}")
        values = found.reshape(wanted).astype(np.float64)
        if self.entry.output_kind == "probabilities":
            values = self._log_odds(values)
        return values.astype(np.float32)

    def check(self, metadata: pb.ModelMetadataResponse) -> None:
        """Raise Precondition where the server tells of other tensors. A server that tells of none
        is believed."""
        sent = self._told("input", self.entry.input_name, metadata.inputs)
        datatype = _DATATYPES[self.entry.input_format]
        if sent is not None and sent.datatype != datatype:
            said = f"input_format {self.entry.input_format} sends {datatype}"
            raise self._mismatch(f"{sent.name} is {sent.datatype}, {said}")
        given = self._told("output", self.entry.output_name, metadata.outputs)
        if given is not None:
            self._check_classes(list(given.shape))

    def digest(self, metadata: pb.ModelMetadataResponse) -> str:
        """SHA-256 hex of address, model, what the server tells of it, and what is made of both
        sides' tensors."""
        told = pb.ModelMetadataResponse()
        told.CopyFrom(metadata)
        told.DiscardUnknownFields()
        own = self.entry.model_dump(mode="json", exclude={"title", "note", "licence", "max_batch"})
        text = json.dumps([own, told.SerializeToString(deterministic=True).hex()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _shape(self, count: int, metadata: pb.ModelMetadataResponse) -> list[int]:
        if self.preprocessing is None:
            known = {one.name: len(one.shape) for one in metadata.inputs}
            return [count, 1] if known.get(self.entry.input_name) == 2 else [count]
        side = self.preprocessing.size_px
        return [count, 3, side, side] if self._channels_first else [count, side, side, 3]

    def _output(self, response: pb.ModelInferResponse) -> Array:
        names = [one.name for one in response.outputs]
        if self.entry.output_name not in names:
            raise InvalidInput(f"no output {self.entry.output_name!r}, but {', '.join(names)}")
        at = names.index(self.entry.output_name)
        raw = response.raw_output_contents
        if raw and len(raw) != len(names):
            raise InvalidInput(f"{len(raw)} raw outputs of {len(names)}")
        return tensors.array_of(response.outputs[at], raw[at] if raw else None)

    def _log_odds(self, values: Array) -> Array:
        if (values < 0).any() or (values > 1).any():
            raise self._mismatch("output_kind is probabilities, and it gives others than 0 to 1")
        logs = np.log(np.maximum(values, _TINY))
        return logs if self.entry.single_label else logs - np.log(np.maximum(1 - values, _TINY))

    def _told(self, what: str, name: str, given: Sequence[TensorMetadata]) -> TensorMetadata | None:
        known = {one.name: one for one in given}
        if known and name not in known:
            raise self._mismatch(f"it has no {what} {name!r}; it has {', '.join(known)}")
        return known.get(name)

    def _check_classes(self, shape: list[int]) -> None:
        last = next((size for size in reversed(shape) if size != 1), -1)
        if last not in (-1, len(self.classes)):
            raise self._mismatch(f"it has {last} classes, the entry {len(self.classes)}")

    def _mismatch(self, why: str) -> Precondition:
        return Precondition(
            f"{self.entry.id} at {self.entry.url}: {why}", differences={"model": why}
        )
