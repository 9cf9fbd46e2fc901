"""The classifier demo's story: what a network of 24,000 weights gains from a large one's outputs.

dataset     a few thousand images of CIFAR-10
teacher     a linear head on EfficientNet-Lite0, from the same images
classifier  small-cnn from teacher and labels; beside it labels alone, and the teacher alone
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2
from stillhouse.student.v1 import student_pb2

from stillhouse_client.client import AsyncClient
from stillhouse_client.demo import BACKBONE
from stillhouse_client.demo_steps import Say, ShowJob, request_id, run_job, timed
from stillhouse_client.jobs import Spec

ARCHITECTURE = "small-cnn"
INPUT_PX = 32
BATCH_IMAGES = 64
LEARNING_RATE = 1e-2
TEMPERATURE = 2.0


@dataclass(frozen=True)
class ClassifierPlan:
    """What a run works on; equal plans find each other's work again."""

    images: int = 5000
    """Images in all; a third of them are for the test."""
    seeds: int = 3
    """Training seeds of every arm."""
    steps: int = 1500
    """Of every arm, of 64 images each."""
    views: int = 4
    """Views of each training image that the teacher answers for."""
    tag: str = ""
    """Part of all names and request ids; another tag runs everything anew."""

    @classmethod
    def quick(cls, tag: str = "") -> ClassifierPlan:
        """A plan of one seed and fewer images, for a first look."""
        return cls(images=1000, seeds=1, steps=400, views=2, tag=tag)

    def name(self, what: str = "") -> str:
        """Return the name of the dataset, or of a model of this plan."""
        parts = ["cifar", what, str(self.images), self.tag]
        return "-".join(part for part in parts if part)

    def request_id(self, *parts: str) -> str:
        """Return the request id of a step: the same in every run of this version and plan."""
        return request_id("stillhouse/demo/classifier", repr(self), *parts)


@dataclass
class ClassifierStory:
    """All that a run made: its jobs by step, and the seconds of each step."""

    jobs: dict[str, jobs_pb2.DistillationJob] = field(default_factory=dict)
    step_s: dict[str, float] = field(default_factory=dict)


class ClassifierDemo:
    """Runs the story with a client; `say` gets what happens, `show` the job that runs."""

    def __init__(
        self, client: AsyncClient, plan: ClassifierPlan, *, say: Say, show: ShowJob
    ) -> None:
        self._client, self._plan = client, plan
        self._say, self._show = say, show
        self.story = ClassifierStory()

    async def run(self) -> ClassifierStory:
        """Run the steps in order; what an earlier run of the plan finished is taken as it is."""
        dataset = await timed(self.story.step_s, "dataset", self._dataset())
        head = self.story.jobs["teacher"] = await timed(
            self.story.step_s, "teacher", self._teacher(dataset)
        )
        self.story.jobs["classifier"] = await timed(
            self.story.step_s, "classifier", self._classifier(dataset, head.model)
        )
        return self.story

    async def _dataset(self) -> str:
        self._say(f"dataset {self._plan.name()}: {self._plan.images} images of CIFAR-10")
        created = await self._client.datasets.create(
            self._plan.name(),
            uri="builtin:cifar10",
            max_items=self._plan.images,
            request_id=self._plan.request_id("dataset"),
        )
        return (await self._client.datasets.wait(created.name)).name

    async def _teacher(self, dataset: str) -> jobs_pb2.DistillationJob:
        self._say(f"teacher: a linear head on {BACKBONE}")
        spec = jobs_pb2.TeacherHeadJobSpec(
            dataset=dataset,
            backbone=f"projects/{self._client.project}/models/{BACKBONE}",
            model_id=self._plan.name("teacher"),
        )
        return await self._job(spec, "teacher")

    async def _classifier(self, dataset: str, teacher: str) -> jobs_pb2.DistillationJob:
        self._say(f"classifier: {ARCHITECTURE} from teacher and labels, beside either alone")
        spec = jobs_pb2.ClassifierJobSpec(
            dataset=dataset,
            teacher=teacher,
            model_id=self._plan.name("student"),
            architecture=ARCHITECTURE,
            input_size=INPUT_PX,
            augmentation=items_pb2.Augmentation(policy="flip_crop", views=self._plan.views),
            training=student_pb2.ClassifierTraining(
                max_steps=self._plan.steps,
                batch_images=BATCH_IMAGES,
                learning_rate=LEARNING_RATE,
                temperature=TEMPERATURE,
            ),
            controls=True,
            training_seeds=self._plan.seeds,
        )
        return await self._job(spec, "classifier")

    async def _job(self, spec: Spec, step: str) -> jobs_pb2.DistillationJob:
        name = partial(self._plan.request_id, step)
        return await run_job(self._client, spec, name, self._show)


async def build(
    client: AsyncClient, story: ClassifierStory, plan: ClassifierPlan, wall_s: float
) -> dict[str, Any]:
    """Return the summary of a run; `report` in it is the job's own report.

    `accuracy` is that of `teacher`, `alone`, `soft` and `soft_hard` as `{value, low, high}`.
    """
    report = json.loads(await client.blobs.read(story.jobs["classifier"].report.digest))
    return {
        "accuracy": report["accuracy"],
        "paired_alone": report.get("paired_alone", {}).get("accuracy"),
        "plan": {"images": plan.images, "training_seeds": plan.seeds, "steps": plan.steps},
        "models": {step: job.model for step, job in story.jobs.items()},
        "wall_s": round(wall_s, 1),
        "step_s": story.step_s,
        "report": report,
    }
