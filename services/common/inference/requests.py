"""A ModelInfer request, checked: its inputs by name, the outputs it asks for, its parameters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common.errors import InvalidInput, Unsupported
from services.common.inference import tensors
from services.common.tensors import Array

T = TypeVar("T")
CLASSIFICATION = "classification"
_SHARED = "shared_memory"
_MAX_TENSORS = 64


@dataclass(frozen=True)
class Wanted:
    """An output that a call asks for; `classes` above 0 asks for that many best classes."""

    name: str
    classes: int = 0


class InferCall:
    """What one call sends. Raises InvalidInput where inputs or outputs are malformed, Unsupported
    where they lie in shared memory."""

    def __init__(self, request: pb.ModelInferRequest) -> None:
        self.request = request
        self.wanted = tuple(_wanted(output) for output in _few(request.outputs, "outputs"))
        names = [one.name for one in _few(request.inputs, "inputs")]
        _check_unique(names, "inputs")
        _check_unique([one.name for one in self.wanted], "outputs")
        for tensor in request.inputs:
            _check_memory(tensor.parameters, tensor.name)
        raw = len(request.raw_input_contents)
        typed = any(tensor.contents.ListFields() for tensor in request.inputs)
        if raw and (raw != len(names) or typed):
            raise InvalidInput(
                f"raw_input_contents: {raw} for {len(names)} inputs; send one for each, or "
                "contents in every input",
                field="raw_input_contents",
            )
        self._at = {name: at for at, name in enumerate(names)}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(self._at)

    def datatype(self, name: str) -> str:
        """Return an input's data type."""
        return self.request.inputs[self._at[name]].datatype

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an input's shape. Raises InvalidInput."""
        return tensors.shape_of(self.request.inputs[self._at[name]])

    def array(self, name: str) -> Array:
        """Return an input of numbers. Raises InvalidInput."""
        return tensors.array_of(self.request.inputs[self._at[name]], self._raw(name))

    def elements(self, name: str) -> list[bytes]:
        """Return the elements of a BYTES input, flat. Raises InvalidInput."""
        return tensors.elements_of(self.request.inputs[self._at[name]], self._raw(name))

    def check_inputs(self, known: Sequence[str], *, how: str) -> str:
        """Return the name of the one input. Raises InvalidInput where it is not one of `known`."""
        if len(self._at) != 1 or not set(self._at) <= set(known):
            given = ", ".join(name[:40] for name in self._at) or "none"
            raise InvalidInput(f"inputs: {how}; got {given}", field="inputs")
        return next(iter(self._at))

    def asks(self, name: str) -> bool:
        """Return whether an output is asked for."""
        return not self.wanted or any(one.name == name for one in self.wanted)

    def check_outputs(self, known: Iterable[str]) -> None:
        """Raise InvalidInput, with the nearest names, for an output that is not known."""
        names = list(known)
        for one in self.wanted:
            if one.name not in names:
                near = difflib.get_close_matches(one.name[:80], names, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
                raise InvalidInput(f"outputs: no {one.name[:80]!r}{hint}", field="outputs")

    def whole_number(self, name: str, *, most: int) -> int:
        """Return a parameter from 1 to `most`, 0 where it is not given. Raises InvalidInput."""
        if name not in self.request.parameters:
            return 0
        return _number(self.request.parameters[name], name, most)

    def text(self, name: str) -> str:
        """Return a text parameter, empty where it is not given. Raises InvalidInput."""
        if name not in self.request.parameters:
            return ""
        value = self.request.parameters[name]
        if value.WhichOneof("parameter_choice") != "string_param":
            raise InvalidInput(f"parameters.{name}: must be text", field=f"parameters.{name}")
        return value.string_param

    def _raw(self, name: str) -> bytes | None:
        raw = self.request.raw_input_contents
        return raw[self._at[name]] if raw else None


def _few(given: Sequence[T], field: str) -> Sequence[T]:
    if len(given) > _MAX_TENSORS:
        raise InvalidInput(f"{field}: more than {_MAX_TENSORS}", field=field)
    return given


def _check_unique(names: Sequence[str], field: str) -> None:
    if len(set(names)) != len(names):
        raise InvalidInput(f"{field}: a name is given twice", field=field)


def _check_memory(parameters: Iterable[str], name: str) -> None:
    if any(key.startswith(_SHARED) for key in parameters):
        raise Unsupported(f"{name[:80]}: shared memory is not served; send the elements")


def _wanted(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> Wanted:
    _check_memory(output.parameters, output.name)
    if CLASSIFICATION not in output.parameters:
        return Wanted(output.name)
    return Wanted(output.name, _number(output.parameters[CLASSIFICATION], CLASSIFICATION, 1 << 20))


def _number(value: pb.InferParameter, name: str, most: int) -> int:
    kind = value.WhichOneof("parameter_choice")
    found = {"int64_param": value.int64_param, "uint64_param": value.uint64_param}.get(kind or "")
    if found is None or not 1 <= found <= most:
        raise InvalidInput(f"{name}: must be a whole number from 1 to {most}", field=name)
    return found
