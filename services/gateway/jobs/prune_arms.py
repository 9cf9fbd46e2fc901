"""The training runs of a prune job: candidates, arms and the whole model, from the same targets."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.gateway.jobs.language_models import frame, origin
from services.gateway.jobs.language_specs import as_seed
from services.gateway.jobs.plans import LanguageData, PruneCuts, PrunePlan
from services.gateway.jobs.prune_cuts import shape_of
from services.gateway.jobs.prune_specs import OWN_ARM
from services.gateway.jobs.text_data import Measured, blob_refs, evaluation_of


@dataclass(frozen=True)
class Recipes:
    """Recipes over the same stored targets, measured by the same `exam`."""

    spec: pb.PruneJobSpec
    plan: PrunePlan
    cuts: PruneCuts
    data: LanguageData
    exam: student_pb2.LanguageEvaluation

    def of_candidate(self, number: int, steps: int) -> student_pb2.LanguageRecipe:
        """Return the short training of a candidate, whose weights nobody keeps."""
        recipe = self._frame("rank", self._training(0, steps))
        recipe.training.patience = 0
        recipe.evaluation.skip_before = True
        recipe.discard_model = True
        self._cut(recipe, number)
        return recipe

    def of_arm(self, arm: str, seed: int, number: int, steps: int) -> student_pb2.LanguageRecipe:
        """Return the training of one arm with its seed, counted from 0, to a candidate's shape."""
        recipe = self._frame(arm, self._training(seed, steps))
        if self.spec.controls:
            recipe.training.patience = 0  # an arm that stops early would get fewer steps
        self._cut(recipe, number)
        if arm == "no_distillation":
            recipe.training.loss = language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY
            recipe.training.intermediate_states = 0
        if arm in ("random_cut", "random_weights"):
            recipe.cut.ClearField("importance")
            recipe.cut.random = arm == "random_cut"
            recipe.cut.from_random_weights = arm == "random_weights"
            recipe.cut.seed = as_seed(self.spec.training.seed + seed)
        return recipe

    def of_round(self, place: int, number: int, steps: int) -> student_pb2.LanguageRecipe:
        """Return the training of a round before the last, counted from 0. Its seed is its own, so
        that no two rounds go through the same part of the data."""
        recipe = self.of_arm(OWN_ARM, -1 - place, number, steps)
        recipe.provenance["round"] = str(place + 1)
        return recipe

    def of_full_model(self) -> student_pb2.LanguageRecipe:
        """Return what measures the whole model, without training."""
        recipe = self._frame("full", language_pb2.LanguageTraining(), of_whole=True)
        recipe.ClearField("target_shards")
        recipe.evaluate_only = True
        return recipe

    def _frame(
        self, arm: str, training: language_pb2.LanguageTraining, *, of_whole: bool = False
    ) -> student_pb2.LanguageRecipe:
        model, dataset = self.plan["model"], self.plan["inputs"]["dataset"]
        provenance = origin("prune", teacher=model, dataset=dataset) | {"arm": arm}
        recipe = frame(model, training, self.plan["sequence_length"], self.exam, provenance)
        assert self.data["targets"] is not None
        recipe.target_shards.extend(blob_refs(self.data["targets"]["shards"]))
        if self.cuts["model"] and not of_whole:
            recipe.student = recipe.provenance["student_digest"] = self.cuts["model"]
        return recipe

    def _training(self, seed: int, steps: int) -> language_pb2.LanguageTraining:
        training = language_pb2.LanguageTraining()
        training.CopyFrom(self.spec.training)
        training.max_steps = steps
        training.seed = as_seed(self.spec.training.seed + seed)
        if training.loss == language_pb2.LANGUAGE_LOSS_UNSPECIFIED:
            training.loss = language_pb2.LANGUAGE_LOSS_FORWARD_KL
        return training

    def _cut(self, recipe: student_pb2.LanguageRecipe, number: int) -> None:
        """Have a candidate cut out, unless the model is small enough as it is."""
        if self.cuts["importance"]:
            recipe.cut.shape.CopyFrom(shape_of(self.cuts["candidates"][number]))
            recipe.cut.importance.digest = self.cuts["importance"]


def ranking_exam(measured: Measured) -> student_pb2.LanguageEvaluation:
    """Return what candidates are ranked on: held-out texts alone."""
    texts = Measured(measured.texts, (), ())
    return evaluation_of(texts, [], None, language_pb2.Sampling())


def round_exam(measured: Measured, data: LanguageData) -> student_pb2.LanguageEvaluation:
    """Return what rounds before the last are measured on: held-out texts, beside the teacher."""
    texts, held = Measured(measured.texts, (), ()), data["held_out"]
    shards = held["shards"] if held else []
    return evaluation_of(texts, shards, None, language_pb2.Sampling())
