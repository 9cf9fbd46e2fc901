"""Rank correlation against scipy's, and of the scores of a real model's layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.fetch import ensure
from services.common.settings import ModelSettings
from services.common.texts import TextRecord
from services.student.language.data import collate
from services.student.pruning.depth import layer_perplexities
from services.student.pruning.importance import measure_importance
from services.student.pruning.ranks import rank_correlation
from services.torch_common.language.files import ModelSource
from services.torch_common.language.loading import load_language_model
from services.torch_common.language.packing import pack


def test_it_is_spearman_s():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, (2, 12)).astype(np.float32)  # many ties
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    up = np.arange(5.0)
    assert rank_correlation(up, np.exp(up)) == pytest.approx(1)
    assert rank_correlation(up, -up) == pytest.approx(-1)


def test_where_it_is_undefined_it_is_none():
    up = np.arange(5.0)
    assert rank_correlation(up, np.ones(5)) is None
    assert rank_correlation(up[:1], up[:1]) is None


def speeches(encoder, count=8):
    """Sequences of 128 tokens from as many State of the Union addresses."""
    folder = ensure(load_catalogue().get("sotu-text"), ModelSettings().cache_dir) / "data"
    paths = sorted(folder.glob("*.txt"))[:: len(list(folder.glob("*.txt"))) // count][:count]
    records = [TextRecord(path.stem, text=path.read_text("utf-8")[:2000]) for path in paths]
    found = pack(records, encoder, 128).sequences[:count]
    return [collate(found[at : at + 4]) for at in range(0, count, 4)]


@pytest.mark.slow
def test_the_cosine_of_a_layer_says_what_is_lost_without_it(tmp_path):
    """SmolLM2-135M: layers that turn the residual stream little are those it can do without."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        source = ModelSource(load_catalogue(), BlobStore(str(tmp_path)), ModelSettings().cache_dir)
        loaded = load_language_model(source, "default", "smollm2-135m", precision="float32")
        batches = speeches(loaded.encoder)
        scores = measure_importance(loaded.model, batches).layers
        without = layer_perplexities(loaded.model, batches)[1:]
    finally:
        torch.set_num_threads(before)
    found = rank_correlation(scores.numpy(), without.numpy())
    print(f"rank correlation of {len(scores)} layers: {found:.3f}")
    assert found > 0.5
