"""Catalogue fields of an image classifier that answers in another server, by the Open Inference
Protocol v2 (Triton, KServe, MLServer)."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_ADDRESS = re.compile(r"grpcs?://(?P<target>[A-Za-z0-9.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5})")


class RemoteFields(BaseModel):
    """Where the model is, what it is sent and what it gives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    """`grpc://host:port`, or `grpcs://host:port` for TLS."""
    remote_model: str = Field(min_length=1)
    """The model's name there."""
    remote_version: str = ""
    """Its version there; empty lets the server choose."""
    input_name: str = Field(min_length=1)
    """Name of the one input."""
    input_format: Literal["encoded", "uint8", "fp32"] = "encoded"
    """encoded: files as they are, BYTES [N] or [N, 1], which the server decodes and preprocesses.
    uint8: resized and cropped here, [N, size, size, 3]. fp32: normalised here as well."""
    input_layout: Literal["nhwc", "nchw"] = "nhwc"
    """Order of the dimensions where pixels are sent."""
    output_name: str = Field(min_length=1)
    """Name of the output with one number per class, [N, classes]."""
    output_kind: Literal["logits", "probabilities"] = "logits"
    """What the numbers are; of probabilities the logarithm is taken, of several labels the
    log-odds."""
    single_label: bool = True
    """Whether classes exclude one another."""
    max_batch: int = Field(default=32, ge=1, le=1024)
    """Most images of one request; larger calls are split."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if _ADDRESS.fullmatch(url) is None:
            raise ValueError("url must be grpc://HOST:PORT or grpcs://HOST:PORT")
        return url

    @property
    def target(self) -> str:
        """The address as gRPC takes it."""
        return self.url.partition("://")[2]

    @property
    def is_encrypted(self) -> bool:
        """Whether the address asks for TLS."""
        return self.url.startswith("grpcs://")
