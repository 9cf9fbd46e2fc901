"""What a service tells the protocol of its models, and what the protocol asks of a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from stillhouse.common.v1 import items_pb2
from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common.inference.requests import InferCall
from services.common.inference.responses import Output
from services.common.interceptors import Context


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model; -1 in the shape is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def message(self) -> pb.ModelMetadataResponse.TensorMetadata:
        """As model metadata has it."""
        return pb.ModelMetadataResponse.TensorMetadata(
            name=self.name, datatype=self.datatype, shape=self.shape
        )


@dataclass(frozen=True)
class Model:
    """A version of a model that can be asked."""

    name: str
    """As lists and statistics give it, however it was asked for."""
    version: str
    classes: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str = "stillhouse"


M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class Listed:
    """A model in the index; `version` is empty where only loading would tell it."""

    name: str
    version: str = ""
    ready: bool = True
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """What a model made of a call."""

    version: str
    items: int
    outputs: Sequence[Output]
    classes: Sequence[str]
    timings: items_pb2.Timings = field(default_factory=items_pb2.Timings)


class Backend(Protocol[M]):
    """A service's models. Names and versions are as callers send them; an empty version lets the
    service choose. Methods raise NotFound, InvalidInput, Precondition or Unsupported."""

    def name_of(self, name: str) -> str:
        """Return a name as lists and statistics give it, known or not."""
        ...

    async def find(self, name: str, version: str, context: Context) -> M:
        """Return a model, loading it where needed."""
        ...

    async def versions(self, model: M, context: Context) -> Sequence[str]:
        """Return the versions of it that can be asked."""
        ...

    async def infer(self, model: M, call: InferCall, context: Context) -> Answer:
        """Run a model. Every output that the call asks for is in the answer."""
        ...

    async def is_ready(self, name: str, version: str, context: Context) -> bool:
        """Return whether a known model takes work without being loaded first."""
        ...

    async def listed(self, project: str, context: Context) -> Sequence[Listed]:
        """Return a project's models; loads nothing."""
        ...

    async def load(self, name: str, context: Context) -> None:
        """Bring a model into memory."""
        ...

    async def unload(self, name: str, context: Context) -> None:
        """Put a model out of memory."""
        ...
