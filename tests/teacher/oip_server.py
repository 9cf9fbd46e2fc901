"""A server of the Open Inference Protocol that answers by the colours of what it is sent, and can
be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
from stillhouse.inference.v2 import open_inference_pb2 as pb
from stillhouse.inference.v2 import open_inference_pb2_grpc

CLASSES = ("red", "green", "blue")
_AXES = {(-1, 16, 16, 3): (1, 2), (-1, 3, 16, 16): (2, 3)}


class ColourServer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """One model, `colours`: the means of the channels of [N, 16, 16, 3] or [N, 3, 16, 16]."""

    def __init__(self, datatype: str, shape: tuple[int, ...]) -> None:
        self.datatype, self.shape = datatype, shape
        self.versions = ["1"]
        self.typed = False
        """Answer in typed contents instead of raw ones."""
        self.answer: np.ndarray | None = None
        """Give this instead."""
        self.refuse_above = 255.0
        """Brightest mean that is not refused."""
        self.failures: list[grpc.StatusCode] = []
        """What the next calls end with."""
        self.slow_s = 0.0
        self.batches: list[int] = []
        self.seen: list[np.ndarray] = []

    async def ModelMetadata(self, request: Any, context: Any) -> pb.ModelMetadataResponse:
        if request.name != "colours":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name}")
        told = pb.ModelMetadataResponse(name="colours", versions=self.versions)
        told.inputs.add(name="pixels", datatype=self.datatype, shape=self.shape)
        told.outputs.add(name="means", datatype="FP32", shape=[-1, 3])
        return told

    async def ModelInfer(self, request: Any, context: Any) -> pb.ModelInferResponse:
        await asyncio.sleep(self.slow_s)
        if self.failures:
            await context.abort(self.failures.pop(0), "told to fail")
        (one,) = request.inputs
        dtype = {"UINT8": "u1", "FP32": "<f4"}[one.datatype]
        pixels = np.frombuffer(request.raw_input_contents[0], dtype).reshape(one.shape)
        self.batches.append(len(pixels))
        self.seen.append(pixels)
        means = pixels.astype(np.float32).mean(axis=_AXES[self.shape])
        if (means > self.refuse_above).any():
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too bright")
        return self._reply(means if self.answer is None else self.answer)

    def _reply(self, values: np.ndarray) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(model_name="colours", model_version=self.versions[-1])
        response.outputs.add(name="other", datatype="INT32", shape=[1])
        output = response.outputs.add(name="means", datatype="FP32", shape=values.shape)
        if self.typed:
            response.outputs[0].contents.int_contents.append(7)
            output.contents.fp32_contents.extend(values.ravel().tolist())
        else:
            response.raw_output_contents.append(b"\7\0\0\0")
            response.raw_output_contents.append(values.astype("<f4").tobytes())
        return response


@asynccontextmanager
async def served(
    servicer: open_inference_pb2_grpc.GRPCInferenceServiceServicer, port: int = 0
) -> AsyncIterator[int]:
    """Serve in this loop; gives the port."""
    server = grpc.aio.server()
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
