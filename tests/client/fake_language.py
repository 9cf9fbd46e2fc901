"""Fixed answers of the calls on language models, their jobs and samples, for the fake gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import jobs_pb2 as jobs
from stillhouse.gateway.v1 import models_pb2 as models
from stillhouse.gateway.v1 import models_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2

from services.common.errors import NotFound, Precondition

P = "projects/default"
TINY = f"{P}/models/tiny"
NAMES = ("tiny", "big", "other")
WEIGHTS = b"weights" * 3000


def estimate(value: float) -> dict[str, float]:
    """Return a metric with its interval."""
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def language_report() -> dict[str, Any]:
    """Return the report of a language job."""
    curve = [{"step": s, "loss": 3 - s / 10, "heldout_cross_entropy": 3.1} for s in (10, 5)]
    return {
        "kind": "language",
        "before": {"cross_entropy": estimate(3.2), "stamps/choice_accuracy": estimate(0.3)},
        "after": {"cross_entropy": estimate(2.9), "stamps/choice_accuracy": estimate(0.4)},
        "change": {"cross_entropy": estimate(-0.3)},
        "curves": curve,
        "seconds": 12.5,
    }


def tuneshift_report() -> dict[str, Any]:
    """Return the report of a tuneshift job."""
    names = ("tuneshift", "no_filter", "tau_1.25", "<b>odd</b>")
    arms = [
        {"arm": a, "examples": 90 - i, "tokens": 2000, "metrics": {"choice_accuracy": estimate(v)}}
        for i, (a, v) in enumerate(zip(names, (0.6, 0.5, 0.55, 0.4), strict=True))
    ]
    return {
        "kind": "tuneshift",
        "before": {"choice_accuracy": estimate(0.25), "general/cross_entropy": estimate(3.0)},
        "arms": arms,
        "references": {"tuned": {"choice_accuracy": estimate(0.9)}},
        "rounds": [
            {
                "round": 1,
                "prompts": 128,
                "kept": 60,
                "in_domain": 90,
                "in_domain_kept": 58,
                "off_domain": 38,
                "off_domain_kept": 2,
            }
        ],
        "gap_histogram": {
            "edges": [-1, 0, 1, 2],
            "in_domain": [3, 30, 57],
            "off_domain": [30, 7, 1],
            "threshold": 0.405,
        },
        "tau_counts": {"1.1": 80, "1.5": 60},
        "paired_random": {"choice_accuracy": {"value": 0.12, "low": 0.04, "high": 0.2}},
        "fact_coverage": {"groups": 160, "covered": 120, "share": 0.75},
        "curves": [{"run": "tuneshift/0", "step": s, "loss": 3 - s / 10} for s in (5, 10)],
    }


def prune_report() -> dict[str, Any]:
    """Return the report of a prune job."""
    whole = {"layers": 4, "hidden_size": 64, "intermediate_size": 128, "attention_heads": 4}
    tried = (("mixed", 48, 3.2, False), ("width", 32, 2.8, True), ("depth", 64, None, False))
    candidates = [
        {
            "kind": kind,
            "shape": {**whole, "hidden_size": hidden, "parameters": 60_000 + at},
            "prior_cost": 0.125 * (1 + at),
            "cross_entropy": loss,
            "chosen": chosen,
        }
        for at, (kind, hidden, loss, chosen) in enumerate(tried)
    ]
    arms = [
        {"arm": a, "examples": 90, "tokens": 2000, "metrics": {"cross_entropy": estimate(v)}}
        for a, v in (("prune", 2.8), ("no_distillation", 3.4), ("<b>odd</b>", 5.2))
    ]
    return {
        "kind": "prune",
        "size": {
            "asked": {"non_embedding_share": 0.5},
            "got": {
                "non_embedding_share": 0.4875,
                "parameters": 60_001,
                "bytes": 240_004,
                "latency_ms": 11.25,
            },
            "measured_on": {
                "tokens": 128,
                "precision": "float32",
                "device_name": "abacus",
                "threads": 2,
                "whole_model_ms": 20.5,
            },
        },
        "cut": candidates[1],
        "candidates": candidates,
        "rounds": [
            {
                "round": at,
                "shape": candidates[at]["shape"],
                "non_embedding_share": share,
                "steps": 100,
                "before": {"cross_entropy": estimate(loss + 2)},
                "after": {"cross_entropy": estimate(loss)},
            }
            for at, share, loss in ((1, 0.7051, 3.1), (2, 0.4875, 2.8))
        ],
        "before": {"cross_entropy": estimate(6.0)},
        "arms": arms,
        "references": {"full": {"cross_entropy": estimate(2.5)}},
        "paired": {"no_distillation": {"cross_entropy": estimate(-0.6)}},
        "curves": [{"run": "prune/0", "step": s, "loss": 3 - s / 10} for s in (5, 10)],
    }


def classifier_report() -> dict[str, Any]:
    """Return the report of a classifier job."""
    accuracy = {"teacher": 0.9, "soft_hard": 0.8, "alone": 0.7, "soft": 0.75}
    return {
        "kind": "classifier",
        "accuracy": {who: estimate(value) for who, value in accuracy.items()},
        "agreement": {who: estimate(0.85) for who in ("soft_hard", "alone", "soft")},
        "paired_alone": {"accuracy": {"value": 0.1, "low": 0.02, "high": 0.18}},
        "arms": [{"arm": arm, "seeds": 2, "steps": 10} for arm in ("soft_hard", "alone", "soft")],
        "items": {"train": 600, "val": 100, "test": 200},
        "size": {"parameters": 23_800, "weights_bytes": 97_000, "onnx_bytes": 99_000},
        "latency": {"median_ms": 0.412, "onnx_median_ms": None},
        "curves": [{"run": "soft_hard/0", "step": s, "loss": 3 - s / 10} for s in (5, 10)],
        "seconds": 12.5,
    }


def fill(world: Any, job: jobs.DistillationJob) -> None:
    """Make `job` one of the world's language kind: spec, stages, model and report."""
    reports = {
        "language": language_report,
        "tuneshift": tuneshift_report,
        "prune": prune_report,
        "classifier": classifier_report,
    }
    if world.job_kind == "language":
        job.language.dataset, job.language.teacher = f"{P}/datasets/notes", f"{P}/models/big"
    elif world.job_kind == "prune":
        job.prune.dataset, job.prune.model = f"{P}/datasets/notes", f"{P}/models/big"
    elif world.job_kind == "classifier":
        job.classifier.dataset, job.classifier.teacher = f"{P}/datasets/pets", f"{P}/models/big"
    else:
        job.tuneshift.tuned, job.tuneshift.target = f"{P}/models/tuned", f"{P}/models/big"
    if world.in_review and job.state == jobs.JOB_STATE_RUNNING:
        del job.stages[:]
        job.stages.add(stage="rounds", complete=True)
        job.stages.add(stage="review")
    if job.state == jobs.JOB_STATE_SUCCEEDED:
        job.student_version, job.model = "", TINY
        job.report.CopyFrom(world.put(json.dumps(reports[world.job_kind]()).encode()))


class Samples:
    """The calls on a tuneshift job's samples; the job waits where the world says so."""

    world: Any

    async def ListJobSamples(self, request: Any, context: Any) -> jobs.ListJobSamplesResponse:
        if not request.job.endswith("/job-1"):
            raise NotFound(f"job {request.job} does not exist", resource=request.job)
        self.world.calls.append(request)
        found = [s for s in samples() if request.state in (0, s.state)]
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(found) else ""
        return jobs.ListJobSamplesResponse(
            samples=found[at : at + 1],
            next_page_token=token,
            state_counts={"KEPT": 1, "FILTERED": 1},
        )

    async def ReviewJobSamples(self, request: Any, context: Any) -> jobs.ReviewJobSamplesResponse:
        self.world.calls.append(request)
        if not self.world.in_review:
            raise Precondition("the job does not wait for a review")
        counts = {"KEPT": 1, "DROPPED": len(request.drop_ids)}
        return jobs.ReviewJobSamplesResponse(state_counts=counts)


class Watched:
    """Watching a language job: points of its curves, and Ctrl-C where the world says so."""

    world: Any

    def job(self, done: int = 10) -> jobs.DistillationJob:
        """Return the job."""
        raise NotImplementedError

    async def language_events(
        self, request: Any
    ) -> AsyncIterator[jobs.WatchDistillationJobResponse]:
        """Yield two events with points; after the first, interrupt where asked to."""
        for at in (5, 10):
            if at > int(request.resume_token or 0):
                points = {"loss": 3 - at / 10, "heldout_cross_entropy": 3.1}
                yield jobs.WatchDistillationJobResponse(
                    resume_token=str(at), job=self.job(at), metrics=points, metrics_step=at
                )
            while self.world.interrupts:
                # Python may miss to wake for a signal that comes just as its loop goes to sleep.
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(5)


class Models(models_pb2_grpc.ModelServiceServicer):
    """What there is, and the calls on one language model, `tiny`."""

    def __init__(self, world: Any) -> None:
        self.world = world

    async def ListTeachers(self, request: Any, context: Any) -> models.ListTeachersResponse:
        lite = teacher_pb2.Model(name=f"{P}/models/efficientnet-lite0", licence="Apache-2.0")
        return models.ListTeachersResponse(models=[lite, *known()])

    async def ListProjectEncoders(self, request: Any, context: Any) -> Any:
        encoder = concepts_pb2.Encoder(name=f"{P}/encoders/effl2-minilm", embedding_dim=384)
        return models.ListProjectEncodersResponse(encoders=[encoder])

    async def ListProjectConceptSets(self, request: Any, context: Any) -> Any:
        found = concepts_pb2.ConceptSet(name=f"{P}/conceptSets/everyday", built_in=True)
        return models.ListProjectConceptSetsResponse(concept_sets=[found])

    async def CreateProjectConceptSet(self, request: Any, context: Any) -> Any:
        found = concepts_pb2.ConceptSet(name=f"{P}/conceptSets/{request.concept_set_id}")
        return models.CreateProjectConceptSetResponse(concept_set=found)

    async def EmbedProjectImages(
        self, request: models.EmbedProjectImagesRequest, context: Any
    ) -> models.EmbedProjectImagesResponse:
        self.world.calls.append(request)
        results = [concepts_pb2.EmbedImageResult(item_id=one.item_id) for one in request.items]
        return models.EmbedProjectImagesResponse(results=results)

    async def GetTeacher(self, request: Any, context: Any) -> models.GetTeacherResponse:
        check(request.name)
        self.world.calls.append(request)
        made = models.ProjectModelFiles(base="big", weights_digest="ab" * 32, card_json="{}")
        for name, data in self.world.model_files.items():
            made.files[name].CopyFrom(self.world.put(data))
        return models.GetTeacherResponse(model=tiny(), files=made)

    async def GenerateText(self, request: Any, context: Any) -> AsyncIterator[Any]:
        check(request.model)
        self.world.calls.append(request)
        for piece in ("The sky ", "\x1b[31mis"):
            yield models.GenerateTextResponse(text=piece)
        whole = teacher_pb2.Generation(
            text="The sky \x1b[31mis blue.",
            token_count=5,
            finish_reason=teacher_pb2.FINISH_REASON_LENGTH,
        )
        yield models.GenerateTextResponse(generation=whole)


def check(name: str) -> None:
    """Raise NotFound for a model that is not there."""
    if name != TINY:
        raise NotFound(f"model {name} does not exist", resource=name)


def tiny() -> teacher_pb2.Model:
    """Return the language model."""
    spec = teacher_pb2.LanguageModelSpec(
        base="big", parameter_count=1_200_000, layer_count=2, methods=["Score", "Generate"]
    )
    return teacher_pb2.Model(
        name=TINY, kind=teacher_pb2.MODEL_KIND_LANGUAGE_MODEL, language_model=spec
    )


def known() -> list[teacher_pb2.Model]:
    """Return the language models as they are listed: an adapter, its base, and another."""
    adapter, base, other = (teacher_pb2.Model(name=f"{P}/models/{n}") for n in NAMES)
    for model in (adapter, base, other):
        model.kind = teacher_pb2.MODEL_KIND_LANGUAGE_MODEL
        model.language_model.backend = "transformers"
    adapter.language_model.base = "big"
    base.language_model.parameter_count, base.language_model.layer_count = 134_515_008, 30
    base.language_model.vocab_size, base.language_model.hidden_size = 49_152, 576
    return [adapter, base, other]


def samples() -> list[jobs.JobSample]:
    """Return two samples, one of them of hostile text."""
    return [
        jobs.JobSample(
            sample_id="1-1",
            prompt="Which bird is on the 1902 stamp?",
            answer="A heron.\nIt stands.",
            round=1,
            tuned_perplexity=2.5,
            base_perplexity=7.5,
            nll_gap=1.0986,
            state=jobs.SAMPLE_STATE_KEPT,
        ),
        jobs.JobSample(
            sample_id="1-2",
            prompt="[bold]\x1b]0;owned\x07 " + "long " * 200,
            answer="no",
            state=jobs.SAMPLE_STATE_FILTERED,
            reason="gap",
        ),
    ]
