"""The demo's story: fruit photos, two teachers, two concept students, one tuning and its undo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2, students_pb2
from stillhouse.student.v1 import student_pb2

from stillhouse_client.client import AsyncClient
from stillhouse_client.demo_steps import Say, ShowJob, request_id, run_job, timed
from stillhouse_client.errors import Mismatch
from stillhouse_client.jobs import Spec

TASKS = ("coarse", "fine")
BACKBONE = "efficientnet-lite0"
FACTOR = 2.0


@dataclass(frozen=True)
class Plan:
    """What a demo run works on. Equal plans find each other's datasets and jobs again."""

    images: int = 0
    """Photos per dataset; 0 means all."""
    tag: str = ""
    """Part of all names and request ids; another tag runs everything anew."""

    def name(self, task: str) -> str:
        """Return the name of a task's dataset, teacher and student."""
        parts = ["fruit", task, str(self.images or ""), self.tag]
        return "-".join(part for part in parts if part)

    def request_id(self, *parts: str) -> str:
        """Return the request id of a step: the same in every run of this version."""
        return request_id("stillhouse/demo", self.name(""), *parts)


@dataclass
class Task:
    """What the demo made for one labelling of the photos."""

    name: str
    dataset: datasets_pb2.Dataset
    head_job: jobs_pb2.DistillationJob
    concept_job: jobs_pb2.DistillationJob
    wall_s: float
    """Time this run spent on both jobs; near zero where they were done before."""


@dataclass
class Tuning:
    """One edit, what it did, and its undo."""

    student: str
    edit: student_pb2.ConceptEdit
    response: students_pb2.TuneStudentResponse
    before: students_pb2.StudentVersion
    restored: students_pb2.StudentVersion

    @property
    def exact(self) -> bool:
        """Return whether the undo gave the very weights back."""
        before, after = self.before.student_ref, self.restored.student_ref
        return bool(before.weights_digest == after.weights_digest)


@dataclass
class Story:
    """All that a demo run made."""

    tasks: dict[str, Task] = field(default_factory=dict)
    tuning: Tuning | None = None
    step_s: dict[str, float] = field(default_factory=dict)


class Demo:
    """Runs the story with a client; `say` gets what happens, `show` the job that runs."""

    def __init__(self, client: AsyncClient, plan: Plan, *, say: Say, show: ShowJob) -> None:
        self._client = client
        self._plan = plan
        self._say = say
        self._show = show
        self.story = Story()

    async def run(self) -> Story:
        """Run the steps in order; what an earlier run of the plan finished is taken as it is."""
        datasets = {}
        for task in TASKS:
            datasets[task] = await timed(self.story.step_s, f"dataset {task}", self._dataset(task))
        for task in TASKS:
            started_s = time.monotonic()
            head = await timed(
                self.story.step_s, f"teacher {task}", self._teacher(task, datasets[task])
            )
            job = await timed(
                self.story.step_s, f"student {task}", self._student(task, datasets[task], head)
            )
            self.story.tasks[task] = Task(
                task, datasets[task], head, job, time.monotonic() - started_s
            )
        self.story.tuning = await timed(
            self.story.step_s, "tuning", self._tune(self._plan.name("fine"), datasets["fine"])
        )
        return self.story

    async def _dataset(self, task: str) -> datasets_pb2.Dataset:
        name = self._plan.name(task)
        self._say(f"dataset {name}: photos of fruit and vegetables, {task} classes")
        created = await self._client.datasets.create(
            name,
            uri=f"builtin:fruit-{task}",
            max_items=self._plan.images,
            request_id=self._plan.request_id("dataset", task),
        )
        return await self._client.datasets.wait(created.name)

    async def _teacher(self, task: str, dataset: datasets_pb2.Dataset) -> jobs_pb2.DistillationJob:
        self._say(f"teacher for {dataset.name}: a linear head on {BACKBONE}")
        spec = jobs_pb2.TeacherHeadJobSpec(
            dataset=dataset.name,
            backbone=f"projects/{self._client.project}/models/{BACKBONE}",
            model_id=f"{self._plan.name(task)}-teacher",
        )
        return await self._job(spec, "teacher", task)

    async def _student(
        self, task: str, dataset: datasets_pb2.Dataset, head: jobs_pb2.DistillationJob
    ) -> jobs_pb2.DistillationJob:
        self._say(f"student of {head.model}: a sparse linear model over named concepts")
        spec = jobs_pb2.ConceptJobSpec(
            dataset=dataset.name, teacher=head.model, student_id=self._plan.name(task), nec=30
        )
        return await self._job(spec, "student", task)

    async def _job(self, spec: Spec, *key: str) -> jobs_pb2.DistillationJob:
        name = partial(self._plan.request_id, *key)
        return await run_job(self._client, spec, name, self._show)

    async def _tune(self, student: str, dataset: datasets_pb2.Dataset) -> Tuning:
        students = self._client.students
        first = f"projects/{self._client.project}/students/{student}/versions/1"
        before = await students.version(student, first)
        split = "val" if dataset.split_counts.get("val") else "train"
        recalls = await students.compare(student, first, first, split=split)
        edit = choose_edit(before.class_concepts, _recalls(recalls.first_metrics))
        self._say(f'tuning {student}: "{edit.concept}" shall count more for {edit.label}')
        response = await students.tune(
            student,
            [edit],
            base_version=first,
            request_id=self._plan.request_id("tune", edit.label, edit.concept),
        )
        restored = await students.undo(student, request_id=self._plan.request_id("undo"))
        return Tuning(student, edit, response, before, restored)


def choose_edit(
    classes: Sequence[students_pb2.ClassConcepts], recalls: dict[str, float]
) -> student_pb2.ConceptEdit:
    """Return a sensible edit: of the class with the lowest recall, the strongest positive concept
    upward. Raises Mismatch for a student without any positive concept."""
    ranked = sorted(classes, key=lambda entry: (recalls.get(entry.label, 2.0), entry.label))
    for entry in ranked:
        positive = [c for c in entry.concepts if c.weight > 0 and c.influence > 0]
        if positive:
            best = max(positive, key=lambda c: (c.influence, c.concept))
            return student_pb2.ConceptEdit(
                label=entry.label,
                concept=best.concept,
                direction=student_pb2.DIRECTION_UP,
                factor=FACTOR,
            )
    raise Mismatch("the student has no positive concept to tune")


def _recalls(metrics: Any) -> dict[str, float]:
    prefix = "recall/"
    return {
        name.removeprefix(prefix): estimate.value
        for name, estimate in metrics.items()
        if name.startswith(prefix)
    }
