"""How well a layer's cosine says what a real model loses without the layer.

Depth importance has two forms (Minitron, arXiv 2407.14679): 1 - mean cosine of what goes into a
layer and what comes out, from one forward pass, and the perplexity without the layer, from one pass
for each. The first is what jobs take, being so much cheaper. Here both are measured on SmolLM2-135M
and held-out sequences of State of the Union addresses, and their order is compared: Spearman's rank
correlation over all layers, over all but the first and the last, and its 95 % bootstrap interval
over sequences. The last line is one JSON object.

    python -m benchmarks.bench_depth_importance [--sequences 32] [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bench_kd import MODEL, SEQUENCE_LENGTH, THREADS, read_speeches
from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.settings import ModelSettings
from services.common.texts import TextRecord
from services.student.language.data import Batch, collate
from services.student.pruning.depth import layer_perplexities
from services.student.pruning.importance import measure_importance
from services.student.pruning.ranks import rank_correlation
from services.torch_common.language.files import ModelSource
from services.torch_common.language.loading import LoadedLanguageModel, load_language_model
from services.torch_common.language.packing import pack

PER_BATCH = 4
DRAWS = 2000
Floats = npt.NDArray[np.float64]


def make_batches(loaded: LoadedLanguageModel, count: int) -> list[Batch]:
    """`count` sequences of 256 tokens, spread evenly over two centuries of speeches."""
    records = [TextRecord(str(at), text=text) for at, text in enumerate(read_speeches())]
    whole = [
        one
        for one in pack(records, loaded.encoder, SEQUENCE_LENGTH).sequences
        if len(one.tokens) == SEQUENCE_LENGTH
    ]
    some = [whole[at] for at in np.linspace(0, len(whole) - 1, count).round().astype(int)]
    return [collate(some[at : at + PER_BATCH]) for at in range(0, count, PER_BATCH)]


def measure(loaded: LoadedLanguageModel, batches: Sequence[Batch]) -> tuple[Floats, Floats, float]:
    """(scores, nats a token lost) [batches, layers] of each batch alone, and how many times longer
    the second took."""
    began_s = time.perf_counter()
    scores = [measure_importance(loaded.model, [one]).layers.numpy() for one in batches]
    scored_s = time.perf_counter() - began_s
    nats = []
    for at, one in enumerate(batches):
        nats.append(layer_perplexities(loaded.model, [one]).log().numpy())
        print(f"batch {at + 1} of {len(batches)}", flush=True)
    ratio = (time.perf_counter() - began_s - scored_s) / scored_s
    lost = np.stack(nats).astype(np.float64)
    return np.stack(scores).astype(np.float64), lost[:, 1:] - lost[:, :1], ratio


def correlation(scores: Floats, lost: Floats, layers: slice = slice(None)) -> float:
    """Rank correlation of the means over batches."""
    found = rank_correlation(scores.mean(axis=0)[layers], lost.mean(axis=0)[layers])
    assert found is not None
    return found


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=32, help="a multiple of 4")
    parser.add_argument("--quick", action="store_true", help="8 sequences")
    args = parser.parse_args()
    if args.quick:
        args.sequences = 8
    torch.set_num_threads(THREADS)
    began_s = time.monotonic()
    settings = ModelSettings()
    source = ModelSource(load_catalogue(), BlobStore(settings.blob_url), settings.cache_dir)
    loaded = load_language_model(source, "default", MODEL)
    scores, lost, ratio = measure(loaded, make_batches(loaded, args.sequences))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        some = rng.integers(0, len(scores), len(scores))
        drawn.append(correlation(scores[some], lost[some]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    for at, (score, loss) in enumerate(zip(scores.mean(0), lost.mean(0), strict=True)):
        print(f"layer {at:2}  1 - cosine {score:.4f}  nats a token lost without it {loss:+.4f}")
    result = {
        "bench": "depth_importance",
        "rank_correlation": correlation(scores, lost),
        "rank_correlation_low": float(low),
        "rank_correlation_high": float(high),
        "rank_correlation_inner": correlation(scores, lost, slice(1, -1)),
        "time_ratio": ratio,
        "scores": scores.mean(axis=0).round(4).tolist(),
        "nats_lost": lost.mean(axis=0).round(4).tolist(),
        "sequences": args.sequences,
        "tokens": args.sequences * SEQUENCE_LENGTH,
        "precision": loaded.precision,
        "seconds": time.monotonic() - began_s,
    }
    print(
        f"rank correlation {result['rank_correlation']:.3f} ({low:.3f} to {high:.3f}), without the "
        f"first and last layer {result['rank_correlation_inner']:.3f}"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
