"""What a model gives, as a ModelInfer response: the outputs that a call asks for, all of them
raw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common.errors import InvalidInput
from services.common.inference.requests import CLASSIFICATION, InferCall, Wanted
from services.common.inference.tensors import BYTES, raw_array, raw_elements
from services.common.tensors import Array


@dataclass(frozen=True)
class Output:
    """An output tensor: numbers, or BYTES elements in row-major order of `shape`."""

    name: str
    shape: tuple[int, ...]
    values: Array | list[bytes]

    @classmethod
    def numbers(cls, name: str, values: Array) -> Output:
        """An output of an array."""
        return cls(name, values.shape, values)

    @classmethod
    def texts(cls, name: str, rows: Sequence[Sequence[str]]) -> Output:
        """A BYTES output [rows, columns] of texts in UTF-8; all rows are equally long."""
        shape = (len(rows), len(rows[0]) if rows else 0)
        return cls(name, shape, [text.encode() for row in rows for text in row])


def respond(
    call: InferCall, version: str, outputs: Iterable[Output], classes: Sequence[str]
) -> pb.ModelInferResponse:
    """Return the response with what the call asks for, in its order. `classes` name the columns of
    an output that is asked for as a classification. Raises InvalidInput."""
    made = {output.name: output for output in outputs}
    request = call.request
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=version, id=request.id
    )
    for wanted in call.wanted or [Wanted(name) for name in made]:
        output = made[wanted.name]
        _add(response, _best(output, wanted.classes, classes) if wanted.classes else output)
    return response


def _add(response: pb.ModelInferResponse, output: Output) -> None:
    if isinstance(output.values, list):
        datatype, raw = BYTES, raw_elements(output.values)
    else:
        datatype, raw = raw_array(output.values)
    response.outputs.add(name=output.name, datatype=datatype, shape=output.shape)
    response.raw_output_contents.append(raw)


def _best(output: Output, count: int, classes: Sequence[str]) -> Output:
    """The `count` highest columns of each row, as texts `value:index:class`, highest first."""
    values = output.values
    if isinstance(values, list) or values.ndim != 2 or values.shape[1] != len(classes):
        known = f"{output.name}: {CLASSIFICATION} needs an output with one number per class"
        raise InvalidInput(known, field="outputs")
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    rows = [
        [f"{values[row, column]:f}:{column}:{classes[column]}" for column in columns]
        for row, columns in enumerate(order)
    ]
    return Output.texts(output.name, rows)
