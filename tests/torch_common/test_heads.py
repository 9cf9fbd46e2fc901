from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.common.errors import InvalidInput
from services.torch_common.heads import LinearHead, load_head, save_head


def head() -> LinearHead:
    torch.manual_seed(0)
    return LinearHead(torch.randn(3, 5), torch.randn(3), ("a", "b", "ü"))


def test_round_trip_and_logits(tmp_path: Path) -> None:
    save_head(head(), tmp_path / "head.safetensors")
    again = load_head(tmp_path / "head.safetensors")
    assert again.classes == ("a", "b", "ü")
    assert again.feature_dim == 5
    x = torch.randn(4, 5)
    assert torch.allclose(again(x), x @ head().weight.T + head().bias)
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


@pytest.mark.parametrize(
    ("weight", "bias", "classes"),
    [
        (torch.zeros(3, 5), torch.zeros(3), ("a", "b")),
        (torch.zeros(3, 5), torch.zeros(2), ("a", "b", "c")),
        (torch.zeros(3, 5), torch.zeros(3), ("a", "b", "b")),
        (torch.zeros(0, 5), torch.zeros(0), ()),
        (torch.full((1, 5), torch.nan), torch.zeros(1), ("a",)),
        (torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1), ("a",)),
    ],
)
def test_wrong_heads_are_refused(
    weight: torch.Tensor, bias: torch.Tensor, classes: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidInput):
        LinearHead(weight, bias, classes)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"rubbish rubbish")
    with pytest.raises(InvalidInput, match="not a linear head"):
        load_head(path)
    save_file({"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, path)
    with pytest.raises(InvalidInput, match="classes in its metadata"):
        load_head(path)
