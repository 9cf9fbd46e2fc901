"""The prune demo's story: a language model cut to a share of its size, and what distillation adds.

texts   passages of State of the Union addresses, a part of them held out
prune   SmolLM2-135M learns the texts lightly, is cut to 70 % of its non-embedding parameters, and
        the cut learns from its stored targets, in less than a pass over the texts; beside it the
        same cut without distillation, a random cut, and random weights
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2

from stillhouse_client.client import AsyncClient
from stillhouse_client.demo_steps import Say, ShowJob, request_id, run_job, timed

MODEL = "smollm2-135m"
BATCH_SEQUENCES = 4
SEQUENCE_LENGTH = 128
LEARNING_RATE = 3e-4
CALIBRATION_SEQUENCES = 128
AXES = {
    "": jobs_pb2.PRUNE_AXES_BOTH,
    "width": jobs_pb2.PRUNE_AXES_WIDTH,
    "depth": jobs_pb2.PRUNE_AXES_DEPTH,
}
_ARMS = {
    "pruned_kd": "prune",
    "pruned_ce": "no_distillation",
    "random_pruned_kd": "random_cut",
    "scratch": "random_weights",
}
"""Names of the summary, by those of the job's report."""


@dataclass(frozen=True)
class PrunePlan:
    """What a run works on; equal plans find each other's work again."""

    share: float = 0.7
    """Of the parameters outside the embeddings, that stay."""
    axes: str = ""
    """What may be cut: `width`, `depth`, or, where empty, either and both."""
    seeds: int = 2
    """Training seeds of every arm."""
    texts: int = 100
    """Passages of about 400 tokens each."""
    steps: int = 50
    """Of every arm, of 4 sequences of 128 tokens."""
    candidates: int = 3
    """Cuts that are trained shortly, to choose one."""
    teacher: str = ""
    """A model that an earlier job has corrected, to be cut as it is; empty means that this job
    corrects the plain one."""
    controls: bool = True
    """Whether the arms that the cut is compared with are trained, too."""
    tag: str = ""
    """Part of all names and request ids; another tag runs everything anew."""

    @classmethod
    def quick(cls, tag: str = "") -> PrunePlan:
        """A plan of one seed and few steps, for a first look."""
        return cls(seeds=1, texts=60, steps=20, candidates=2, tag=tag)

    @property
    def dataset(self) -> str:
        """Name of the dataset, which plans of other sizes share."""
        return _name("cut-texts", str(self.texts), self.tag)

    @property
    def model(self) -> str:
        """Name of the cut model; its corrected teacher's ends in `-teacher`."""
        parts = (f"{self.share * 100:.0f}", self.axes, str(self.steps), str(self.seeds))
        return _name("cut", *parts, self.tag)

    def request_id(self, *parts: str) -> str:
        """Return the request id of a step: the same in every run of this version and plan."""
        return request_id("stillhouse/demo/prune", repr(self), *parts)


@dataclass
class PruneStory:
    """All that a run made: its job, and the seconds of each step."""

    job: jobs_pb2.DistillationJob = field(default_factory=jobs_pb2.DistillationJob)
    step_s: dict[str, float] = field(default_factory=dict)


class PruneDemo:
    """Runs the story with a client; `say` gets what happens, `show` the job that runs."""

    def __init__(self, client: AsyncClient, plan: PrunePlan, *, say: Say, show: ShowJob) -> None:
        self._client, self._plan = client, plan
        self._say, self._show = say, show
        self.story = PruneStory()

    async def run(self) -> PruneStory:
        """Run the steps in order; what an earlier run of the plan finished is taken as it is."""
        dataset = await timed(self.story.step_s, "texts", self._texts())
        self.story.job = await timed(self.story.step_s, "prune", self._prune(dataset))
        return self.story

    async def _texts(self) -> str:
        self._say(f"texts: {self._plan.texts} passages of addresses")
        created = await self._client.datasets.create(
            self._plan.dataset,
            uri="builtin:sotu-text-texts",
            max_items=self._plan.texts,
            kind=datasets_pb2.DATASET_KIND_TEXTS,
            request_id=request_id("stillhouse/demo/prune/texts", self._plan.dataset),
        )
        return (await self._client.datasets.wait(created.name)).name

    async def _prune(self, dataset: str) -> jobs_pb2.DistillationJob:
        plan = self._plan
        beside = ", beside its controls" if plan.controls else ""
        self._say(
            f"prune: {plan.teacher or MODEL} to {plan.share:.0%}{_by(plan.axes)}, retrained{beside}"
        )
        spec = jobs_pb2.PruneJobSpec(
            dataset=dataset,
            model=f"projects/{self._client.project}/models/{plan.teacher or MODEL}",
            model_id=plan.model,
            non_embedding_share=plan.share,
            axes=AXES[plan.axes],
            candidates=plan.candidates,
            calibration_sequences=CALIBRATION_SEQUENCES,
            correct_teacher=not plan.teacher,
            training=language_pb2.LanguageTraining(
                max_steps=plan.steps,
                batch_sequences=BATCH_SEQUENCES,
                sequence_length=SEQUENCE_LENGTH,
                learning_rate=LEARNING_RATE,
                checkpoint_steps=max(1, plan.steps // 2),
            ),
            controls=plan.controls,
            training_seeds=plan.seeds,
        )
        name = partial(plan.request_id, "prune")
        return await run_job(self._client, spec, name, self._show)


async def build(
    client: AsyncClient, story: PruneStory, plan: PrunePlan, wall_s: float
) -> dict[str, Any]:
    """Return the summary of a run; `report` in it is the job's own report."""
    report = json.loads(await client.blobs.read(story.job.report.digest))
    return {
        **summary(report),
        "plan": {
            "non_embedding_share": plan.share,
            "axes": plan.axes or "both",
            "training_seeds": plan.seeds,
            "steps": plan.steps,
            "tokens": plan.steps * BATCH_SEQUENCES * SEQUENCE_LENGTH,
        },
        "model": story.job.model,
        "wall_s": round(wall_s, 1),
        "step_s": story.step_s,
        "report": report,
    }


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a prune report: `ce`, the held-out cross-entropy of the whole model (as
    it teaches) and of every arm as `{value, low, high}` over training seeds and sequences;
    `paired`, that of the job's own arm minus each control's; the sizes, and what was cut."""
    arms = {arm["arm"]: arm["metrics"].get("cross_entropy") for arm in report["arms"]}
    own = {name: arms[arm] for name, arm in _ARMS.items() if arm in arms}
    paired = report.get("paired", {})
    less = {
        name: paired[arm]["cross_entropy"]
        for name, arm in _ARMS.items()
        if "cross_entropy" in paired.get(arm, {})
    }
    return {
        "ce": {"full": report["references"]["full"].get("cross_entropy"), **own},
        "paired": less,
        "size": report["size"],
        "cut": {"kind": report["cut"]["kind"], "shape": report["cut"]["shape"]},
    }


def _by(axes: str) -> str:
    return f" by {axes} alone" if axes else ""


def _name(*parts: str) -> str:
    return "-".join(part for part in parts if part)
