"""How much of distillation's gain sparse stored targets keep, and what they cost, on a real model.

The teacher is SmolLM2-135M, the text are State of the Union addresses. The student is half of the
teacher's layers, those that change their input most; it first learns some of the text by plain
cross-entropy, since without that all losses merely repair what the cut broke. From there four
students go through the same other sequences in the same order, some times, with the same steps:

- `ce`: plain cross-entropy to the text;
- `full`: forward KL to the teacher's whole distribution;
- `sparse`: RS-KD, forward KL to stored draws, 40 bytes a token at most, everything counted;
- `topk`: the teacher's most probable ids at the same bytes, scaled to sum to 1.

gain_share = (CE_ce - CE_sparse) / (CE_ce - CE_full) on held-out speeches, with a 95 % bootstrap
interval over sequences and seeds. step_ratio is the median of sparse step / plain step, taken side
by side: reading targets, forward, loss, backward and optimizer. The last line is one JSON object.

    python -m benchmarks.bench_kd [--steps 40] [--passes 4] [--healing 60] [--seeds 3] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.fetch import ensure
from services.common.settings import ModelSettings
from services.common.targets import TargetShard
from services.common.texts import TextRecord
from services.student.language.data import Batch, TargetBank, collate
from services.student.language.objective import target_logits
from services.student.language.plan import plan_steps
from services.student.language.scoring import Examinee, Named, cross_entropies
from services.student.language.sparse_losses import (
    ROWS,
    SparseTargets,
    label_targets,
    sampled_cross_entropy,
)
from services.teacher.language.heads import Head, hidden_states
from services.teacher.language.targets import TargetOptions, sparse_targets
from services.torch_common.language.files import ModelSource
from services.torch_common.language.loading import (
    LoadedLanguageModel,
    keep_layers,
    load_language_model,
)
from services.torch_common.language.packing import PackedSequence, pack

Arm = Literal["ce", "full", "sparse", "topk"]
ARMS: tuple[Arm, ...] = ("ce", "full", "sparse", "topk")
MODEL, TEXT = "smollm2-135m", "sotu-text"
SEQUENCE_LENGTH, BATCH, THREADS = 256, 4, 2
BYTES_PER_TOKEN = 40.0
RATE, HEALING_RATE, WARMUP_SHARE = 2e-4, 5e-4, 0.1
HELDOUT = 48
DRAWS = 2000


@dataclass(frozen=True)
class Corpus:
    """Sequences of 256 tokens, of different speeches each."""

    healing: list[PackedSequence]
    train: list[PackedSequence]
    heldout: list[PackedSequence]


@dataclass
class Student:
    """One arm in training, and the seconds of each of its steps."""

    arm: Arm
    model: Any
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    dtype: torch.dtype
    seconds: list[float] = field(default_factory=list)


def read_speeches() -> list[str]:
    """The speeches in order of time."""
    found = ensure(load_catalogue().get(TEXT), ModelSettings().cache_dir)
    paths = sorted((found / "data").glob("*.txt"))
    return [path.read_text(encoding="utf-8") for path in paths]


def make_corpus(
    speeches: Sequence[str], loaded: LoadedLanguageModel, healing: int, train: int
) -> Corpus:
    """Every tenth speech is held out; sequences are a fixed random choice."""

    def choose(texts: Sequence[str], count: int) -> list[PackedSequence]:
        records = [TextRecord(str(at), text=text) for at, text in enumerate(texts)]
        found = pack(records, loaded.encoder, SEQUENCE_LENGTH).sequences[:-1]
        order = np.random.default_rng(0).permutation(len(found))[:count]
        return [found[i] for i in order]

    kept = choose([text for at, text in enumerate(speeches) if at % 10 != 5], healing + train)
    held = choose([text for at, text in enumerate(speeches) if at % 10 == 5], HELDOUT)
    return Corpus(kept[:healing], kept[healing:], held)


@torch.no_grad()
def influential_layers(
    loaded: LoadedLanguageModel, sequences: Sequence[PackedSequence]
) -> list[int]:
    """The half of the layers with the least cosine between their input and output."""
    ids = torch.from_numpy(np.stack([one.tokens for one in sequences]).astype(np.int64))
    states = loaded.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    cosines = [
        float(torch.cosine_similarity(before.float(), after.float(), dim=-1).mean())
        for before, after in pairwise(states)
    ]
    return sorted(sorted(range(len(cosines)), key=lambda at: cosines[at])[: len(cosines) // 2])


def store(
    loaded: LoadedLanguageModel, sequences: Sequence[PackedSequence], options: TargetOptions
) -> TargetBank:
    """Targets as TeacherService.SampleTargets stores them."""
    head = Head(loaded.model, loaded.vocab_size)
    found = []
    for at in range(0, len(sequences), 8):
        found += sparse_targets(loaded, head, sequences[at : at + 8], options)
    data = TargetShard.encode(found, kind=options.kind)
    return TargetBank([TargetShard.from_bytes(data)])


@torch.no_grad()
def remember(loaded: LoadedLanguageModel, sequences: Sequence[PackedSequence]) -> list[Tensor]:
    """The teacher's last hidden state before each target, [targets, d] of each sequence: its whole
    distribution is one product away."""
    found = []
    for one in sequences:
        states = hidden_states(loaded.model, [one.tokens])[0]
        found.append(states[torch.from_numpy(np.flatnonzero(one.is_target) - 1)])
    return found


def make_student(arm: Arm, start: Any, steps: int, rate: float, dtype: torch.dtype) -> Student:
    """A copy of a model in float32, with an optimizer for so many steps."""
    model = copy.deepcopy(start).float().train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    warmup = max(1, math.ceil(WARMUP_SHARE * steps))

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, at)
    return Student(arm, model, optimizer, schedule, dtype)


def heal(loaded: LoadedLanguageModel, corpus: Corpus) -> Any:
    """The student that all arms start from."""
    layers = influential_layers(loaded, corpus.heldout[:8])
    print(f"layers {layers}", flush=True)
    start = keep_layers(loaded.model, layers)
    steps = len(corpus.healing) // BATCH
    student = make_student("ce", start, steps, HEALING_RATE, loaded.model.dtype)
    head = Head(loaded.model, loaded.vocab_size)
    for at in range(steps):
        step(student, corpus.healing[at * BATCH : (at + 1) * BATCH], None, torch.empty(0), head)
    return student.model


def renormalised(targets: SparseTargets) -> SparseTargets:
    """Weights of each row scaled to sum to 1."""
    sums = torch.zeros_like(targets.tail).index_add(0, targets.row, targets.weight)
    return replace(targets, weight=targets.weight / sums[targets.row])


def backward(arm: Arm, logits: Tensor, batch: Batch, states: Tensor, head: Head) -> None:
    """Send the gradient of an arm's loss back; `states` [N, d] are the teacher's."""
    if arm == "full":
        logits.backward(kl_gradient(logits, states, head))  # type: ignore[no-untyped-call]
        return
    targets = label_targets(batch.labels) if arm == "ce" else batch.targets
    assert targets is not None
    loss = sampled_cross_entropy(logits, renormalised(targets) if arm == "topk" else targets)
    loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def kl_gradient(logits: Tensor, states: Tensor, head: Head) -> Tensor:
    """(q - p) / N, the gradient of KL(p || q) by the logits [N, V], some rows at a time."""
    grad = torch.empty_like(logits)
    for at in range(0, len(logits), ROWS):
        rows = slice(at, at + ROWS)
        p = head(states[rows]).softmax(dim=-1)
        grad[rows] = logits[rows].float().softmax(dim=-1).sub_(p).div_(len(logits))
    return grad


def step(
    student: Student,
    sequences: Sequence[PackedSequence],
    bank: TargetBank | None,
    states: Tensor,
    head: Head,
) -> None:
    """One optimizer step, timed."""
    start_s = time.perf_counter()
    batch = collate(sequences, bank)
    logits = target_logits(student.model, batch, dtype=student.dtype)
    backward(student.arm, logits, batch, states, head)
    torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
    student.optimizer.step()
    student.schedule.step()
    student.optimizer.zero_grad(set_to_none=True)
    student.seconds.append(time.perf_counter() - start_s)


def train(
    loaded: LoadedLanguageModel,
    start: Any,
    corpus: Corpus,
    banks: dict[Arm, TargetBank],
    states: Sequence[Tensor],
    *,
    steps: int,
    rate: float,
    seed: int,
) -> list[Student]:
    """Train the arms side by side; who goes first changes from step to step."""
    students = [make_student(arm, start, steps, rate, loaded.model.dtype) for arm in ARMS]
    head = Head(loaded.model, loaded.vocab_size)
    lengths = np.full(len(corpus.train), SEQUENCE_LENGTH)
    none = np.zeros(0, np.int64)
    order = plan_steps(lengths, none, steps=steps, batch=BATCH, replay_share=0.0, seed=seed)
    for at, places in enumerate(order):
        sequences = [corpus.train[i] for i in places]
        taught = torch.cat([states[i] for i in places])
        for student in np.roll(np.array(students, dtype=object), at):
            step(student, sequences, banks.get(student.arm), taught, head)
        if (at + 1) % max(1, steps // 5) == 0:
            print(f"seed {seed}, step {at + 1} of {steps}", flush=True)
    return students


def measure(loaded: LoadedLanguageModel, model: Any, corpus: Corpus) -> np.ndarray[Any, Any]:
    """Cross-entropy per token of each held-out sequence, [HELDOUT] nats."""
    named = [Named(str(at), str(at), one) for at, one in enumerate(corpus.heldout)]
    who = Examinee(model.eval(), loaded.encoder, loaded.model.dtype)
    return np.array([item.value / item.count for item in cross_entropies(who, named)])


def share(losses: dict[Arm, np.ndarray[Any, Any]], arm: Arm) -> tuple[float, float, float]:
    """(CE_ce - CE_arm) / (CE_ce - CE_full) of losses [seeds, sequences], with its interval."""

    def of(seeds: Any, items: Any) -> float:
        mean = {name: float(found[seeds][:, items].mean()) for name, found in losses.items()}
        return (mean["ce"] - mean[arm]) / (mean["ce"] - mean["full"])

    seeds, items = losses["ce"].shape
    rng = np.random.default_rng(0)
    drawn = [of(rng.integers(0, seeds, seeds), rng.integers(0, items, items)) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return of(np.arange(seeds), np.arange(items)), float(low), float(high)


def step_ratio(runs: Sequence[Sequence[Student]]) -> float:
    """Median over steps of sparse seconds / plain seconds, the first steps left out."""
    ratios: list[float] = []
    for students in runs:
        by_arm = {student.arm: student.seconds[2:] for student in students}
        ratios += [a / b for a, b in zip(by_arm["sparse"], by_arm["ce"], strict=True)]
    return float(np.median(ratios))


def main() -> None:
    """Run, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--passes", type=int, default=4, help="times each sequence is seen")
    parser.add_argument("--healing", type=int, default=60, help="steps before the arms part")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--quick", action="store_true", help="4 steps, one seed")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.passes, args.healing, args.seeds = 4, 2, 4, 1
    torch.set_num_threads(THREADS)
    began_s = time.monotonic()
    settings = ModelSettings()
    source = ModelSource(load_catalogue(), BlobStore(settings.blob_url), settings.cache_dir)
    loaded = load_language_model(source, "default", MODEL)
    pool = -(-args.steps * BATCH // args.passes)
    corpus = make_corpus(read_speeches(), loaded, args.healing * BATCH, pool)
    start = heal(loaded, corpus)
    before = measure(loaded, start, corpus)
    print(f"healed  {before.mean():.4f}", flush=True)
    losses: dict[Arm, list[Any]] = {arm: [] for arm in ARMS}
    options = TargetOptions(kind="top_k", bytes_per_token=BYTES_PER_TOKEN)
    banks: dict[Arm, TargetBank] = {"topk": store(loaded, corpus.train, options)}
    states = remember(loaded, corpus.train)
    runs, stored = [], 0.0
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        options = replace(options, kind="sampled", seed=seed)
        banks["sparse"] = store(loaded, corpus.train, options)
        stored = max(stored, banks["sparse"].bytes_per_token)
        made = train(
            loaded, start, corpus, banks, states, steps=args.steps, rate=args.rate, seed=seed
        )
        runs.append(made)
        for student in made:
            losses[student.arm].append(measure(loaded, student.model, corpus))
            print(f"seed {seed} {student.arm:7} {losses[student.arm][-1].mean():.4f}", flush=True)
            student.model = None
    found = {arm: np.stack(rows) for arm, rows in losses.items()}
    teacher = measure(loaded, loaded.model, corpus)
    setting = {"precision": loaded.precision, "seconds": time.monotonic() - began_s} | vars(args)
    report(found, runs, stored, {"healed": before.mean(), "teacher": teacher.mean()}, setting)


def report(
    found: dict[Arm, np.ndarray[Any, Any]],
    runs: Sequence[Sequence[Student]],
    stored: float,
    references: dict[str, float],
    setting: dict[str, Any],
) -> None:
    """The table and the JSON line."""
    shares = {arm: share(found, arm) for arm in ARMS[2:]}
    means = {name: float(value) for name, value in references.items()}
    means |= {arm: float(found[arm].mean()) for arm in ARMS}
    for name, value in means.items():
        print(f"{name:7} {value:.4f} nats a token, held out")
    for arm, (value, low, high) in shares.items():
        print(f"{arm:7} keeps {value:.3f} of the gain ({low:.3f} to {high:.3f})")
    (value, low, high), ratio = shares["sparse"], step_ratio(runs)
    print(f"step ratio {ratio:.3f}, {stored:.1f} bytes a token")
    for student in runs[0]:
        print(f"{student.arm:7} {np.median(student.seconds):.2f} s a step")
    result = {
        "bench": "kd",
        "gain_share": value,
        "gain_share_low": low,
        "gain_share_high": high,
        "topk_gain_share": shares["topk"][0],
        "step_ratio": ratio,
        "bytes_per_token": stored,
        "cross_entropy": means,
        "by_seed": {arm: found[arm].mean(axis=1).round(4).tolist() for arm in ARMS},
        **setting,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
