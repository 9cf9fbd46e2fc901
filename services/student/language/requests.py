"""Checks of a language recipe that read no blob and load no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.student.v1 import student_pb2

from services.common.blobs import check_digest
from services.common.errors import InvalidInput
from services.student.language.options import TrainingOptions, read_options
from services.student.pruning.requests import check_cut

MAX_TOP_K = 4096


def check_language(recipe: student_pb2.LanguageRecipe) -> None:
    """Raise InvalidInput for what can be seen in the request alone."""
    if not recipe.student:
        raise InvalidInput("student: the model to start from is required", field="student")
    for name, refs in _shards(recipe):
        for ref in refs:
            check_digest(ref.digest, field=name)
    if recipe.tokenizer_digest:
        check_digest(recipe.tokenizer_digest, field="tokenizer_digest")
    kept = list(recipe.keep_layers)
    if kept != sorted(set(kept)) or any(at < 0 for at in kept):
        raise InvalidInput("keep_layers: must rise, from 0", field="keep_layers")
    if recipe.HasField("cut"):
        check_cut(recipe)
    _check_evaluation(recipe)
    if not recipe.evaluate_only:
        _check_training(recipe)


def has_exam(recipe: student_pb2.LanguageRecipe) -> bool:
    """Whether there is anything to measure."""
    exam = recipe.evaluation
    return any((exam.text_shards, exam.target_shards, exam.choice_shards, exam.task_shards))


def _shards(
    recipe: student_pb2.LanguageRecipe,
) -> Iterator[tuple[str, Iterable[items_pb2.BlobRef]]]:
    for name in ("text_shards", "target_shards", "replay_shards"):
        yield name, getattr(recipe, name)
    for name in ("text_shards", "target_shards", "choice_shards", "task_shards"):
        yield f"evaluation.{name}", getattr(recipe.evaluation, name)


def _check_evaluation(recipe: student_pb2.LanguageRecipe) -> None:
    exam = recipe.evaluation
    if recipe.evaluate_only and not has_exam(recipe):
        raise InvalidInput("evaluation: there is nothing to measure", field="evaluation")
    if exam.task_shards and exam.verifier.WhichOneof("verifier") is None:
        raise InvalidInput("evaluation.verifier: tasks need one", field="evaluation.verifier")


def _check_training(recipe: student_pb2.LanguageRecipe) -> None:
    teacher = bool(recipe.target_shards) or recipe.HasField("on_policy")
    options = read_options(recipe.training, teacher=teacher)
    if not recipe.text_shards and not recipe.target_shards:
        raise InvalidInput("text_shards or target_shards: at least one is required", field="data")
    if options.patience and not recipe.evaluation.text_shards:
        raise InvalidInput(
            "training.patience: stopping early needs evaluation.text_shards",
            field="training.patience",
        )
    if options.intermediate_states:
        _check_states(recipe, options)
    if recipe.HasField("on_policy"):
        _check_on_policy(recipe)
    elif is_uld(recipe) and not recipe.text_shards:
        raise InvalidInput(
            "text_shards: ULD needs the records of the targets, which the student tokenizes itself",
            field="text_shards",
        )


def _check_states(recipe: student_pb2.LanguageRecipe, options: TrainingOptions) -> None:
    """Refuse to compare states where there is no model as it was, or no loss to balance them."""
    field = "training.intermediate_states"
    if not recipe.HasField("cut"):
        raise InvalidInput(
            f"{field}: these are the states of a model before it was pruned; give a cut, or leave "
            "them out",
            field=field,
        )
    if options.loss.divergence is None:
        raise InvalidInput(
            f"{field}: weighs as much as the distillation loss; give target_shards and a loss "
            "towards them, or leave them out",
            field=field,
        )


def is_uld(recipe: student_pb2.LanguageRecipe) -> bool:
    """Whether the targets may be of another tokenizer than the student's."""
    asked = recipe.training.loss == language_pb2.LANGUAGE_LOSS_ULD
    return asked and not recipe.evaluate_only


def _check_on_policy(recipe: student_pb2.LanguageRecipe) -> None:
    asked = recipe.on_policy
    if not recipe.text_shards:
        raise InvalidInput("text_shards: on_policy needs their prompts", field="text_shards")
    if recipe.target_shards:
        raise InvalidInput(
            "on_policy: the teacher is asked in every step; leave target_shards out",
            field="target_shards",
        )
    if is_uld(recipe):
        raise InvalidInput(
            "training.loss: ULD is for stored targets; a teacher that scores the student's own "
            "samples has the student's tokenizer, so take another loss",
            field="training.loss",
        )
    if not asked.teacher:
        raise InvalidInput("on_policy.teacher: required", field="on_policy.teacher")
    if not 0 <= asked.student_share <= 1:
        raise InvalidInput("on_policy.student_share: from 0 to 1", field="on_policy.student_share")
    if not 0 <= asked.top_k <= MAX_TOP_K:
        raise InvalidInput(f"on_policy.top_k: from 0 to {MAX_TOP_K}", field="on_policy.top_k")
