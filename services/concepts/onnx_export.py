"""Write the image side of an encoder as one ONNX graph: pixels in, the service's regions out.

Everything after the resize is inside: normalisation, the forward pass, the segments (a Loop that
merges as `segments.py` does), their means, and scaling to unit length. In: `image` uint8 [1, S, S,
3], the RGB square that `Preprocessing.pixels` makes. Out: `regions` float32 [regions, D], whole
image first, and `map` uint8 [rows, columns], the segment of each cell from 1. It equals the
service's answer up to rounding; where two merges tie within the last bits, the two runtimes may cut
an image differently.
"""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from services.common.blocks import block_bounds
from services.concepts.model import EncoderModel
from services.concepts.onnx_segments import cluster_script
from services.concepts.segments import DEFAULT_SEGMENTS

OPSET = 17


def export_onnx(model: EncoderModel) -> bytes:
    """Return the ONNX file of an encoder's image side. Takes seconds, in the model's own thread."""
    size = model.preprocessing.size_px
    pixels = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    graph = _Regions(model).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        # The exporter that follows a Python loop into an ONNX Loop is the older one, which says so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (pixels,),
            buffer,  # type: ignore[arg-type]
            input_names=["image"],
            output_names=["regions", "map"],
            opset_version=OPSET,
            dynamo=False,
        )
    return _tidied(buffer.getvalue(), model)


class _Regions(nn.Module):
    """uint8 [1, S, S, 3] to (unit rows [1 + segments + blocks, D], uint8 map [rows, columns])."""

    mean: Tensor
    std: Tensor
    touching: Tensor
    index: Tensor

    def __init__(self, model: EncoderModel) -> None:
        super().__init__()
        # A copy where the service computes elsewhere or in another type than the graph does.
        self.network = model.network
        if next(model.network.parameters()).device.type != "cpu" or model.compute.identity:
            self.network = copy.deepcopy(model.network).to(device="cpu", dtype=torch.float32)
        self.register_buffer("mean", torch.tensor(model.preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.preprocessing.std).view(1, 3, 1, 1))
        self.rows, self.columns = model.map_shape
        cells = self.rows * self.columns
        self.segments = min(DEFAULT_SEGMENTS, cells)
        self.cluster = cluster_script()
        self.register_buffer("touching", _touching(self.rows, self.columns))
        self.register_buffer("index", torch.arange(cells))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        whole, dense = self.network((x - self.mean) / self.std)
        tokens = dense.reshape(self.rows * self.columns, -1)
        owner = self.cluster(tokens, self.touching, len(self.index) - self.segments)
        rank = torch.cumsum(torch.eq(owner, self.index).to(torch.int64), dim=0) - 1
        label = rank[owner]
        member = (label.unsqueeze(0) == self.index[: self.segments].unsqueeze(1)).to(torch.float32)
        means = (member / member.sum(dim=1, keepdim=True)) @ tokens
        cells = (label + 1).to(torch.uint8).reshape(self.rows, self.columns)
        grid = dense.reshape(self.rows, self.columns, -1)
        blocks = [
            grid[top:bottom, left:right].mean(dim=(0, 1)).unsqueeze(0)
            for top, bottom, left, right in block_bounds(self.rows, self.columns)
        ]
        return _unit(torch.cat([whole, means, *blocks])), cells


def _touching(rows: int, columns: int) -> Tensor:
    """Which cells of a grid share an edge, fp32 [N, N] of 0 and 1."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    steps = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    return torch.from_numpy((steps == 1).astype(np.float32))


def _unit(rows: Tensor) -> Tensor:
    length = torch.sqrt((rows * rows).sum(dim=1, keepdim=True))
    return rows / length.clamp(min=1e-12)


def _tidied(data: bytes, model: EncoderModel) -> bytes:
    """The graph without source positions, with what made it in its metadata."""
    graph = onnx.load_from_string(data)
    _clear_docs(graph.graph)
    graph.producer_name, graph.producer_version = "stillhouse", ""
    facts = {
        "encoder": model.id,
        "encoder_digest": model.digest,
        "region_digest": model.region_digest,
        "image": "RGB uint8 [1, size, size, 3], resized and cropped as preprocessing says",
        "preprocessing_digest": model.preprocessing.digest,
    }
    onnx.helper.set_model_props(graph, facts)
    onnx.checker.check_model(graph)
    return bytes(graph.SerializeToString(deterministic=True))


def _clear_docs(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _clear_docs(attribute.g)
