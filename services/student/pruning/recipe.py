"""The importance recipe: a model and some text in, scores of its parts and shapes to cut to out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from google.protobuf.json_format import MessageToDict
from stillhouse.student.v1 import student_pb2

from services.student.artefacts import Card, to_json
from services.student.head_recipe import put
from services.student.language.data import Batch, by_length, collate, read_records
from services.student.language.students import LanguageStudent, load_student
from services.student.pruning import requests
from services.student.pruning.applied import shape_card
from services.student.pruning.architecture import shape_of
from services.student.pruning.depth import layer_perplexities
from services.student.pruning.importance import check_calibration, measure_importance
from services.student.pruning.latency import check_latency, search_latency
from services.student.pruning.ranks import rank_correlation
from services.student.pruning.schedule import hop_shares
from services.student.pruning.scores import Importance
from services.student.pruning.search import Candidate, Grid, check_possible, search
from services.student.pruning.shape import Shape
from services.student.pruning.stopwatch import Stopwatch
from services.student.recipes import Training
from services.torch_common.language.packing import PackedSequence, pack
from services.torch_common.language.precision import dtype_of

_TIMED = "latencies"
BATCH_TOKENS = 1024
"""Padded tokens of a forward pass; its logits take a few hundred megabytes."""


def find_cuts(
    training: Training, recipe: student_pb2.ImportanceRecipe
) -> student_pb2.ImportanceResult:
    """Measure, search, store. Raises NotFound, InvalidInput, Precondition before any work."""
    requests.check_importance(recipe)
    training.progress("loading the model", 0, 0)
    asked = student_pb2.LanguageRecipe(
        student=recipe.student, tokenizer_digest=recipe.tokenizer_digest, evaluate_only=True
    )
    student = load_student(training, asked, None, "")
    base = shape_of(student.model)
    watch = _stopwatch(training, recipe, student)
    if watch is not None:
        check_latency(base, recipe.budget.max_latency_ms, watch)
    elif recipe.HasField("budget"):
        check_possible(base, requests.read_budget(recipe.budget).limit_of(base), Grid())
    batches, skipped = _calibration(training, recipe, student)
    importance = _measured(training, recipe, student, batches)
    candidates = _candidates(training, recipe, base, importance, watch)
    report = _report(recipe, student, base, importance, candidates)
    if watch is not None:
        report["latency"] = watch.notes()
    elif recipe.budget.rounds > 1:
        report["reachable"] = _reachable(recipe, base, importance)
    if skipped:
        report["skipped"] = skipped
    return student_pb2.ImportanceResult(
        importance=put(training.blobs, training.project, importance.to_bytes()),
        candidates=[requests.candidate_message(one) for one in candidates],
        report=put(training.blobs, training.project, to_json(report)),
    )


def _calibration(
    training: Training, recipe: student_pb2.ImportanceRecipe, student: LanguageStudent
) -> tuple[list[Batch], list[str]]:
    """Batches of little padding, and what became no sequence. Raises InvalidInput for too few."""
    blobs, project = training.blobs, training.project
    records = read_records(blobs, project, recipe.text_shards, field="text_shards")
    length = min(recipe.sequence_length or requests.DEFAULT_LENGTH, student.context_length)
    packed = pack(records, student.loaded.encoder, length)
    count = len(packed.sequences)
    most = min(recipe.max_sequences or requests.DEFAULT_SEQUENCES, count)
    spread = np.linspace(0, count - 1, most).round().astype(int)
    batches = _batches([packed.sequences[at] for at in spread])
    check_calibration(batches)
    return batches, packed.skipped


def _batches(sequences: list[PackedSequence]) -> list[Batch]:
    found: list[list[PackedSequence]] = [[]]
    for one in by_length(sequences):
        if found[-1] and (len(found[-1]) + 1) * len(one.tokens) > BATCH_TOKENS:
            found.append([])
        found[-1].append(one)
    return [collate(some) for some in found if some]


def _measured(
    training: Training,
    recipe: student_pb2.ImportanceRecipe,
    student: LanguageStudent,
    batches: list[Batch],
) -> Importance:
    """The importance; a worker that takes over reads what was measured."""

    def told(stage: str, done: int, total: int) -> None:
        training.progress(stage, done, total)

    scores = training.phase(
        "importance",
        lambda: measure_importance(
            student.model, batches, told=lambda *at: told("measuring importance", *at)
        ).to_arrays(),
    )
    if recipe.layer_perplexity:
        scores = scores | training.phase(
            "perplexities",
            lambda: {
                "perplexities": layer_perplexities(
                    student.model, batches, told=lambda *at: told("leaving out layers", *at)
                ).numpy()
            },
        )
    return replace(Importance.from_arrays(scores), model_digest=student.loaded.digest)


def _stopwatch(
    training: Training, recipe: student_pb2.ImportanceRecipe, student: LanguageStudent
) -> Stopwatch | None:
    """What times shapes, where the budget is one of time; it knows what an earlier worker has
    measured."""
    if not recipe.budget.max_latency_ms:
        return None
    around = training.surroundings
    dtype = dtype_of(recipe.budget.precision or around.precision, around.device)
    watch = Stopwatch(
        student.model, dtype, told=lambda done: training.progress("timing shapes", done, 0)
    )
    watch.recall(training.writer.load(_TIMED) or {})
    return watch


def _candidates(
    training: Training,
    recipe: student_pb2.ImportanceRecipe,
    base: Shape,
    importance: Importance,
    watch: Stopwatch | None,
) -> list[Candidate]:
    """The candidates, if there is a budget. Times are kept, so that a worker that takes over finds
    the same ones."""
    if watch is not None:
        found = search_latency(base, importance, recipe.budget.max_latency_ms, watch)
        training.phase(_TIMED, watch.to_arrays)
        return found
    if not recipe.HasField("budget"):
        return []
    budget = requests.read_budget(recipe.budget)
    per_kind = recipe.max_candidates or requests.DEFAULT_CANDIDATES
    return search(base, importance, budget, per_kind=per_kind)


def _reachable(
    recipe: student_pb2.ImportanceRecipe, base: Shape, importance: Importance
) -> list[str]:
    """Kinds of cut that reach the limit itself: nobody goes rounds towards what cannot be."""
    whole = replace(requests.read_budget(recipe.budget), rounds=1)
    return sorted({one.kind for one in search(base, importance, whole, per_kind=1)})


def _report(
    recipe: student_pb2.ImportanceRecipe,
    student: LanguageStudent,
    base: Shape,
    importance: Importance,
    candidates: list[Candidate],
) -> Card:
    perplexities = importance.perplexities
    layers: list[Card] = [
        {"layer": at, "score": float(score)} for at, score in enumerate(importance.layers)
    ]
    report: Card = {
        "kind": "importance",
        "student": recipe.student,
        "student_digest": student.loaded.digest,
        "precision": str(student.dtype).removeprefix("torch."),
        "shape": shape_card(base),
        "layers": layers,
        "calibration": {
            "text_shards": [ref.digest for ref in recipe.text_shards],
            "sequences": importance.sequences,
            "tokens": importance.tokens,
        },
        "budget": MessageToDict(recipe.budget, preserving_proto_field_name=True),
        "candidates": [_told(one, base, importance) for one in candidates],
        "provenance": dict(recipe.provenance),
    }
    if perplexities is not None:
        report["perplexity"] = float(perplexities[0])
        scores = importance.layers.numpy(), perplexities[1:].numpy()
        report["rank_correlation"] = rank_correlation(*scores)
        for layer, value in zip(layers, perplexities[1:], strict=True):
            layer["perplexity_without"] = float(value)
    return report


def _told(one: Candidate, base: Shape, importance: Importance) -> Card:
    """A candidate for people: its sizes, the layers it would keep, and rounds to reach it in."""
    share = one.shape.non_embedding_parameters / base.non_embedding_parameters
    told: Card = {
        "kind": one.kind,
        "shape": shape_card(one.shape),
        "kept_layers": sorted(importance.layer_order[: one.shape.layers]),
        "prior_cost": one.cost,
        "non_embedding_share": share,
        "rounds": hop_shares(share),
    }
    if one.latency_ms is not None:
        told["latency_ms"] = one.latency_ms
    return told
