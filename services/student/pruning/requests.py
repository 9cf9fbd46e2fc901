"""Prune messages: checks that load no model, and the shapes and budgets they stand for."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.student.v1 import student_pb2

from services.common.blobs import check_digest
from services.common.errors import InvalidInput
from services.student.pruning.search import Budget, Candidate, Kind
from services.student.pruning.shape import CUT_SIZES, Shape

MAX_CALIBRATION = 65_536
MAX_LENGTH = 1 << 20
MAX_CANDIDATES = 100
MAX_ROUNDS = 16
DEFAULT_LENGTH = 256
DEFAULT_SEQUENCES = 1024
DEFAULT_CANDIDATES = 3
_BYTES = {"": 4, "float32": 4, "bfloat16": 2}
_KINDS: dict[Kind, student_pb2.PruneKind.ValueType] = {
    "width": student_pb2.PRUNE_KIND_WIDTH,
    "depth": student_pb2.PRUNE_KIND_DEPTH,
    "mixed": student_pb2.PRUNE_KIND_MIXED,
}


def check_cut(recipe: student_pb2.LanguageRecipe) -> None:
    """Raise InvalidInput for what can be seen of a recipe's cut in the request alone."""
    cut, shape = recipe.cut, recipe.cut.shape
    if recipe.keep_layers:
        raise InvalidInput("cut: give either cut or keep_layers", field="cut")
    if cut.random and cut.from_random_weights:
        raise InvalidInput("cut: give either random or from_random_weights", field="cut.random")
    if cut.from_random_weights and recipe.training.HasField("lora"):
        raise InvalidInput(
            "training.lora: there is nothing to adapt in random weights", field="training.lora"
        )
    if cut.HasField("importance"):
        check_digest(cut.importance.digest, field="cut.importance")
    elif not cut.random and not cut.from_random_weights:
        raise InvalidInput(
            "cut.importance: required; an importance recipe measures it", field="cut.importance"
        )
    for name in CUT_SIZES:
        if getattr(shape, name) < 0:
            raise InvalidInput(f"cut.shape.{name}: must not be negative", field=f"cut.shape.{name}")
    kept = list(shape.kept_layers)
    if kept != sorted(set(kept)) or any(at < 0 for at in kept):
        raise InvalidInput("cut.shape.kept_layers: must rise, from 0", field="cut.shape")
    if not kept and not any(getattr(shape, name) for name in CUT_SIZES):
        raise InvalidInput("cut.shape: names no size to cut to", field="cut.shape")


def check_importance(recipe: student_pb2.ImportanceRecipe) -> None:
    """Raise InvalidInput for what can be seen in the request alone."""
    if not recipe.student:
        raise InvalidInput("student: the model to measure is required", field="student")
    if not recipe.text_shards:
        raise InvalidInput("text_shards: at least one is required", field="text_shards")
    for ref in recipe.text_shards:
        check_digest(ref.digest, field="text_shards")
    if recipe.tokenizer_digest:
        check_digest(recipe.tokenizer_digest, field="tokenizer_digest")
    for name, most in (
        ("sequence_length", MAX_LENGTH),
        ("max_sequences", MAX_CALIBRATION),
        ("max_candidates", MAX_CANDIDATES),
    ):
        if not 0 <= getattr(recipe, name) <= most:
            raise InvalidInput(f"{name}: must be from 0 to {most}", field=name)
    if recipe.HasField("budget"):
        check_budget(recipe.budget)


def check_budget(message: student_pb2.PruneBudget) -> None:
    """Raise InvalidInput for what can be seen of a budget in the request alone."""
    limit = message.WhichOneof("limit")
    if limit is None:
        raise InvalidInput(
            "budget: set one of max_parameters, non_embedding_share, max_bytes, max_latency_ms",
            field="budget",
        )
    value, most = getattr(message, limit), 1.0 if limit == "non_embedding_share" else float("inf")
    if not 0 < value < most:
        raise InvalidInput(f"budget.{limit}: lies between 0 and {most:g}", field=f"budget.{limit}")
    if message.precision not in _BYTES:
        raise InvalidInput(
            "budget.precision: must be float32, bfloat16 or empty", field="budget.precision"
        )
    if message.share_of_parameters < 0:
        raise InvalidInput(
            "budget.share_of_parameters: must not be negative", field="budget.share_of_parameters"
        )
    if not 0 <= message.rounds <= MAX_ROUNDS or (message.rounds > 1 and message.max_latency_ms):
        raise InvalidInput(
            f"budget.rounds: from 0 to {MAX_ROUNDS}, at most 1 beside max_latency_ms, since time "
            "has no even steps",
            field="budget.rounds",
        )


def read_budget(message: student_pb2.PruneBudget) -> Budget:
    """The budget of size of a request that `check_budget` let through."""
    limit = str(message.WhichOneof("limit"))
    budget = Budget(
        bytes_per_parameter=_BYTES[message.precision],
        share_of=message.share_of_parameters,
        rounds=max(message.rounds, 1),
    )
    return replace(budget, **{limit: getattr(message, limit)})


def read_shape(message: student_pb2.PrunedShape, base: Shape) -> Shape:
    """The shape that a model of `base` is to have. Raises InvalidInput, its fields as the request
    names them, where it cannot have it."""
    kept = tuple(message.kept_layers)
    try:
        shape = replace(
            base,
            layers=message.layers or len(kept) or base.layers,
            kept_layers=kept,
            hidden_size=message.hidden_size or base.hidden_size,
            intermediate_size=message.intermediate_size or base.intermediate_size,
            attention_heads=message.attention_heads or base.attention_heads,
        )
        shape.check_within(base)
    except InvalidInput as error:
        wrong = [(f"cut.shape.{field}", why) for field, why in error.violations]
        text = "; ".join(f"{field}: {why}" for field, why in wrong)
        raise InvalidInput(text, field=wrong[0][0], violations=wrong) from None
    return shape


def candidate_message(one: Candidate) -> student_pb2.PruneCandidate:
    """A candidate as a message; which layers it keeps is left to whoever cuts."""
    shape = one.shape
    return student_pb2.PruneCandidate(
        shape=student_pb2.PrunedShape(**{name: getattr(shape, name) for name in CUT_SIZES}),
        kind=_KINDS[one.kind],
        parameters=shape.parameters,
        non_embedding_parameters=shape.non_embedding_parameters,
        prior_cost=one.cost,
        latency_ms=one.latency_ms or 0.0,
    )
