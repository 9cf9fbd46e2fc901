from __future__ import annotations

import pytest
import torch

from services.torch_common.threads import set_threads


def test_sets_and_keeps() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(0) == 1
    finally:
        torch.set_num_threads(before)


def test_negative_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        set_threads(-1)
