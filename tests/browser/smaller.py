"""The workbench over a prune and a classifier job that have ended: their reports come from the
gateway's own functions, of what runs might have measured."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stillhouse.gateway.v1 import datasets_pb2 as datasets
from stillhouse.gateway.v1 import jobs_pb2 as jobs

from services.common.predictions import Predictions
from services.gateway.jobs import classifier_arms, classifier_report, prune_report
from services.gateway.jobs.arms import Run
from services.gateway.jobs.plans import PruneCandidate, PruneChoice, PruneCuts, RankedCut
from tests.browser.faking import workbench
from tests.client import fake_gateway
from tests.client.fake_gateway import World
from tests.client.fake_language import P

PRUNED, SMALL = f"{P}/distillationJobs/pruned", f"{P}/distillationJobs/small"
_WHOLE = {"layers": 30, "hidden_size": 576, "intermediate_size": 1536, "attention_heads": 9}
_EMBEDDING = 49_152
_CUTS = (
    ("mixed", {"layers": 23, "hidden_size": 480, "attention_heads": 6}, 0.61, 3.31),
    ("width", {"hidden_size": 432, "intermediate_size": 1088}, 0.64, 3.27),
    ("width", {"hidden_size": 384, "intermediate_size": 1312}, 0.70, 3.41),
    ("depth", {"layers": 17}, 0.82, 3.52),
    ("mixed", {"layers": 24, "intermediate_size": 992}, 0.88, None),
    ("mixed", {"layers": 22, "intermediate_size": 1152}, 0.93, None),
)
"""Kind, sizes, prior cost and held-out cross-entropy after a short training."""
CHOSEN = 1
_ARMS = {"prune": 2.94, "no_distillation": 3.02, "random_cut": 3.46, "random_weights": 4.81}
_RIGHT = {"soft_hard": 0.86, "alone": 0.79, "soft": 0.84}


def shape_of(sizes: dict[str, int]) -> dict[str, int | bool]:
    """Return a shape as the importance recipe's report has it; a tied embedding counts once."""
    shape = {**_WHOLE, **sizes}
    attention = 2 * 64 * (shape["attention_heads"] + 3)
    layer = shape["hidden_size"] * (attention + 3 * shape["intermediate_size"] + 2)
    inner = shape["layers"] * layer + shape["hidden_size"]
    whole = inner + _EMBEDDING * shape["hidden_size"]
    return {**shape, "tied": True, "parameters": whole, "non_embedding_parameters": inner}


def found_cuts() -> list[PruneCandidate]:
    """Return candidates of one size, the likeliest first."""
    inner = int(shape_of({})["non_embedding_parameters"])
    shapes = [shape_of(sizes) for _, sizes, _, _ in _CUTS]
    return [
        PruneCandidate(
            kind=kind,
            shape=shape,
            kept_layers=list(range(int(shape["layers"]))),
            prior_cost=cost,
            non_embedding_share=int(shape["non_embedding_parameters"]) / inner,
            rounds=[0.77, 0.6],
            latency_ms=None,
        )
        for (kind, _, cost, _), shape in zip(_CUTS, shapes, strict=True)
    ]


def report_of_prune(spec: jobs.PruneJobSpec) -> dict[str, Any]:
    """Return what the gateway would report of four candidates, four arms and three seeds."""
    reports, runs = {}, []
    for at, (arm, nats) in enumerate(_ARMS.items()):
        for seed in range(3):
            digest = f"{arm}/{seed}"
            reports[digest] = _trained(nats + 0.02 * seed, 10 * at + seed)
            runs.append(Run(arm=arm, seed=seed, report=digest, examples=4_096, tokens=901_120))
    ranked = []
    for number, (_, _, _, loss) in enumerate(_CUTS):
        if loss is not None:
            reports[f"candidate/{number}"] = _trained(loss, 9)
            digest = f"candidate/{number}"
            ranked.append(RankedCut(number=number, cross_entropy=loss, report=digest))
    return prune_report.make_report(
        spec,
        PruneCuts(
            model="",
            importance="i",
            report="r",
            whole_parameters=int(shape_of({})["non_embedding_parameters"]),
            candidates=found_cuts(),
        ),
        PruneChoice(number=CHOSEN, ranked=ranked),
        [],
        runs,
        reports=reports,
        importance={"shape": shape_of({}), "calibration": {"sequences": 1_024}},
        full={"before": {"cross_entropy": {"value": 2.61, "low": 2.55, "high": 2.68}}},
        correction={},
        stored=None,
    )


def report_of_classifier() -> dict[str, Any]:
    """Return what the gateway would report of three arms with two seeds on 300 test images."""
    draw = np.random.default_rng(5)
    labels = draw.integers(0, 4, 300)
    runs = [
        classifier_arms.Run(arm=arm, seed=seed, blobs={}) for arm in _RIGHT for seed in range(2)
    ]
    own = {
        "architecture": "small-cnn",
        "input_px": 64,
        "size": {"parameters": 23_844, "weights_bytes": 97_344, "onnx_bytes": 101_220},
        "latency": {"median_ms": 0.412, "onnx_median_ms": 0.187, "threads": 2, "device": "cpu"},
        "seconds": 12.5,
    }
    measured = classifier_report.Measured(
        _decided(draw, labels, 0.93),
        tuple(_decided(draw, labels, _RIGHT[run["arm"]]) for run in runs),
        tuple(own for _ in runs),
    )
    return classifier_report.make_report(measured, classifier_arms.Fitted(runs=runs, steps=480))


def _trained(nats: float, seed: int) -> dict[str, Any]:
    """The report of a run: 80 records of 50 tokens each, measured before and after."""
    draw = np.random.default_rng(seed)
    gaps = draw.normal(0, 0.35, 80)

    def items(level: float) -> list[dict[str, Any]]:
        return [
            {"id": str(at), "group": str(at), "value": 50 * (level + gap), "count": 50}
            for at, gap in enumerate(gaps)
        ]

    return {
        "items": {
            "before": {"cross_entropy": items(6.4)},
            "after": {"cross_entropy": items(nats)},
        },
        "steps": 400,
        "seconds": 30.0,
        "trained_tokens": 300_000,
        "curves": [{"step": 100, "loss": nats + 0.5}, {"step": 400, "loss": nats}],
    }


def _decided(draw: np.random.Generator, labels: Any, right: float) -> Predictions:
    """Logits [n, 4] that name the label of a share of the images."""
    named = np.where(draw.random(len(labels)) < right, labels, (labels + 1) % 4)
    logits = draw.normal(0, 1, (len(labels), 4))
    logits[np.arange(len(labels)), named] += 3
    return Predictions(logits, np.eye(4, dtype=bool)[labels], multi_label=False)


class SmallerJobs(fake_gateway.Jobs):
    """A prune and a classifier job that have ended; a job that is started runs through at once."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        pruned, small = self._named(PRUNED), self._named(SMALL)
        pruned.prune.dataset, pruned.prune.model = f"{P}/datasets/notes", f"{P}/models/big"
        pruned.prune.non_embedding_share, pruned.prune.candidates = 0.6, 4
        pruned.prune.controls, pruned.prune.training_seeds = True, 3
        pruned.prune.training.max_steps = 400
        small.classifier.dataset, small.classifier.teacher = f"{P}/datasets/pets", f"{P}/models/x"
        small.classifier.architecture, small.classifier.controls = "small-cnn", True
        self.all = {job.name: self._ended(job) for job in (pruned, small)}

    async def CreateDistillationJob(self, request: Any, context: Any) -> Any:
        self.world.calls.append(request)
        job = self._named(f"{P}/distillationJobs/made-{len(self.all)}")
        job.MergeFrom(request.job)
        self.all[job.name] = job
        return jobs.CreateDistillationJobResponse(job=job)

    async def ListDistillationJobs(self, request: Any, context: Any) -> Any:
        return jobs.ListDistillationJobsResponse(jobs=self.all.values())

    async def WatchDistillationJob(
        self, request: Any, context: Any
    ) -> AsyncIterator[jobs.WatchDistillationJobResponse]:
        job = self.all[request.name]
        if job.state == jobs.JOB_STATE_RUNNING:
            for step in (5, 10):
                for run, loss in (("candidate/0", 3.5), ("prune/0", 3.0)):
                    yield jobs.WatchDistillationJobResponse(
                        resume_token=f"{step}{run}",
                        job=job,
                        metrics={"loss": loss - step / 50, "images_per_s": 9.0},
                        metrics_step=step,
                        metrics_run=run,
                    )
            self.all[job.name] = job = self._ended(job)
        yield jobs.WatchDistillationJobResponse(resume_token="end", job=job)

    def _named(self, name: str) -> jobs.DistillationJob:
        job = jobs.DistillationJob(name=name, state=jobs.JOB_STATE_RUNNING)
        job.stages.add(stage="ingest", done=120, total=120, unit="records", complete=True)
        return job

    def _ended(self, job: jobs.DistillationJob) -> jobs.DistillationJob:
        ended = jobs.DistillationJob()
        ended.CopyFrom(job)
        ended.state = jobs.JOB_STATE_SUCCEEDED
        ended.stages.add(stage="fit", done=400, total=400, unit="steps", complete=True)
        ended.model = f"{P}/models/tiny"
        report = report_of_prune(job.prune) if job.HasField("prune") else report_of_classifier()
        ended.report.CopyFrom(self.world.put(json.dumps(report).encode()))
        return ended


@contextmanager
def smaller_workbench() -> Iterator[tuple[str, World]]:
    """Yield the workbench's address and what its gateway was asked; it has texts and images."""
    with workbench(SmallerJobs) as (url, world):
        for name, kind, classes in (
            ("notes", datasets.DATASET_KIND_TEXTS, []),
            ("general", datasets.DATASET_KIND_TEXTS, []),
            ("pets", datasets.DATASET_KIND_IMAGES, ["cat", "dog"]),
        ):
            world.datasets[f"{P}/datasets/{name}"] = datasets.Dataset(
                name=f"{P}/datasets/{name}",
                state=datasets.DATASET_STATE_READY,
                kind=kind,  # type: ignore[arg-type]
                classes=classes,
                item_count=120,
                split_counts={"train": 90, "val": 10, "test": 20},
            )
        yield url, world
