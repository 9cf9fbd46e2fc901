"""Whether the models and datasets of a language job fit together, before it costs anything.

Whatever does not is FAILED_PRECONDITION and names both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.teacher.v1 import teacher_pb2

from services.common import names
from services.common.errors import NotFound, Precondition
from services.common.texts import TextManifest
from services.gateway.datasets import records as datasets
from services.gateway.jobs.checks import dataset_plan, wait_for_dataset
from services.gateway.jobs.job import Job, Tools
from services.gateway.jobs.language_specs import MODES, is_uld, model_id_of
from services.gateway.jobs.plans import DatasetPlan, LanguagePlan, ModelPlan, TextInputs

DEFAULT_SEQUENCE = 256
NO_MODEL = ModelPlan(
    name="",
    digest="",
    precision="",
    tokenizer_digest="",
    vocab_size=0,
    context_length=0,
    layer_count=0,
    has_chat_template=False,
    parameter_count=0,
    base="",
)
_METHODS = {
    "stored_targets": "SampleTargets",
    "sequence_level": "Generate",
    "on_policy": "SampleTargets",
}
_FIELDS = {
    "stored_targets": ("text", "answer"),
    "supervised": ("text", "answer"),
    "sequence_level": ("prompt",),
    "on_policy": ("prompt",),
}
Names = tuple[str, Sequence[str], str, str]
"""Dataset, evaluation datasets, replay and off-domain datasets; empty where there is none."""


async def wait_for_texts(job: Job, wanted: Names) -> TextInputs:
    """Wait until all datasets are READY. Raises NotFound, Precondition."""

    async def one(name: str) -> DatasetPlan | None:
        return await wait_for_dataset(job, name, texts=True) if name else None

    dataset, evaluation, replay, off_domain = wanted
    plans = [await wait_for_dataset(job, name, texts=True) for name in evaluation]
    return TextInputs(
        evaluation=plans,
        replay=await one(replay),
        off_domain=await one(off_domain),
        dataset=await one(dataset),
    )


async def texts_now(tools: Tools, wanted: Names) -> TextInputs | None:
    """Return the datasets as they are; None where one is still being read.

    Raises NotFound, Precondition.
    """

    async def one(name: str) -> DatasetPlan | None:
        row = await asyncio.to_thread(datasets.get, tools.store, *names.parse(name, "datasets"))
        return None if row.state == "CREATING" else dataset_plan(row, texts=True)

    dataset, evaluation, replay, off_domain = wanted
    found = {name: await one(name) for name in (dataset, *evaluation, replay, off_domain) if name}
    if None in found.values():
        return None
    return TextInputs(
        dataset=found.get(dataset),
        evaluation=[plan for name in evaluation if (plan := found[name])],
        replay=found.get(replay),
        off_domain=found.get(off_domain),
    )


def language_names(spec: pb.LanguageJobSpec) -> Names:
    """Return the datasets of a language job."""
    return spec.dataset, list(spec.evaluation_datasets), spec.replay_dataset, ""


async def check_language_job(
    tools: Tools, spec: pb.LanguageJobSpec, inputs: TextInputs, *, patient: bool
) -> LanguagePlan:
    """Check a language job; `patient` waits for services that are away. Raises Precondition."""
    assert inputs["dataset"] is not None
    project, _ = names.parse(spec.dataset, "datasets")
    mode = MODES[spec.mode]
    uld = is_uld(spec.training)
    converses = await check_fields(tools, project, inputs["dataset"], mode, answers_alone=uld)
    student = await model_plan(tools, spec.student, patient=patient)
    teacher = NO_MODEL
    if mode != "supervised":
        teacher = await model_plan(tools, spec.teacher, methods=[_METHODS[mode]], patient=patient)
    check_chat([student, teacher], chat=spec.chat or converses)
    check_depth(student, spec.keep_layers)
    await check_free(tools, project, model_id_of(spec), patient=patient)
    same = same_tokens(teacher, student)
    if mode in ("stored_targets", "on_policy") and not (same or uld):
        raise different_tokens("teacher", teacher, "student", student)
    check_same_model(spec, mode)
    return LanguagePlan(
        inputs=inputs,
        mode=mode,
        teacher=teacher,
        student=student,
        sequence_length=sequence_length(spec.training, [student, teacher]),
        same_tokens=same,
    )


async def model_plan(
    tools: Tools, name: str, *, methods: Sequence[str] = (), patient: bool = True
) -> ModelPlan:
    """Ask the teacher service for a language model that can serve `methods`.

    Raises NotFound, Precondition.
    """
    request = teacher_pb2.GetModelRequest(name=name)
    ask, long_s = tools.peers.teacher.GetModel, tools.peers.shard_timeout_s
    if patient:
        reply = await tools.peers.insist(ask, request, what="model", timeout_s=long_s)
    else:
        reply = await tools.peers.ask(ask, request)
    if reply.model.WhichOneof("spec") != "language_model":
        raise Precondition(f"{name} is not a language model")
    spec = reply.model.language_model
    missing = [method for method in methods if spec.methods and method not in spec.methods]
    if missing:
        raise Precondition(
            f"{name} cannot serve {missing[0]}: it serves {', '.join(spec.methods)}",
            differences={"methods": f"{missing[0]} is not among {', '.join(spec.methods)}"},
        )
    return ModelPlan(
        name=name,
        digest=reply.model.digest,
        precision=spec.precision,
        tokenizer_digest=spec.tokenizer_digest,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        layer_count=spec.layer_count,
        has_chat_template=spec.has_chat_template,
        parameter_count=spec.parameter_count,
        base=spec.base,
    )


def same_tokens(first: ModelPlan, second: ModelPlan) -> bool:
    """Whether equal texts have equal token ids under both models."""
    keys = ("tokenizer_digest", "vocab_size")
    return bool(first["tokenizer_digest"]) and all(first[k] == second[k] for k in keys)  # type: ignore[literal-required]


def different_tokens(role: str, first: ModelPlan, other: str, second: ModelPlan) -> Precondition:
    """Return the error for two models whose tokens must be the same."""

    def said(model: ModelPlan) -> str:
        digest = model["tokenizer_digest"][:12] or "unknown"
        return f"{digest} with {model['vocab_size']:,} ids"

    return Precondition(
        f"{role} {first['name']} and {other} {second['name']} have different tokenizers "
        f"({said(first)}, {said(second)}); token by token they cannot be compared",
        differences={"tokenizer": f"{role}: {said(first)}; {other}: {said(second)}"},
    )


def check_chat(models: Sequence[ModelPlan], *, chat: bool) -> None:
    """Raise Precondition for a model that is to converse and has no chat template."""
    for model in models:
        if chat and model["name"] and not model["has_chat_template"]:
            raise Precondition(
                f"{model['name']} has no chat template, so it cannot learn from conversations: "
                "leave `chat` out, and take a dataset of plain prompts",
                differences={"chat": f"{model['name']} has no chat template"},
            )


def check_same_model(spec: pb.LanguageJobSpec, mode: str) -> None:
    """Raise Precondition where a model would learn what it predicts already."""
    if mode == "stored_targets" and spec.teacher == spec.student and not spec.keep_layers:
        raise Precondition(
            f"teacher and student are the same model {spec.student}: it would learn its own "
            "predictions; choose another, or layers to keep"
        )


def check_depth(student: ModelPlan, layers: Sequence[int]) -> None:
    """Raise Precondition for layers that the student does not have."""
    count = student["layer_count"]
    if layers and count and max(layers) >= count:
        raise Precondition(
            f"keep_layers has {max(layers)}, and {student['name']} has the layers 0 to {count - 1}",
            differences={"keep_layers": f"{max(layers)} of {count}"},
        )


async def check_free(tools: Tools, project: str, model_id: str, *, patient: bool) -> None:
    """Raise Precondition where the new model's name is one of the catalogue, which would go first.

    A model of the project may be made again.
    """
    with contextlib.suppress(NotFound):
        await asyncio.to_thread(tools.blobs.get_ref, project, f"models/{model_id}")
        return
    name = names.join(project, "models", model_id)
    request, ask = teacher_pb2.GetModelRequest(name=name), tools.peers.teacher.GetModel
    try:
        if patient:
            await tools.peers.insist(ask, request, what="model")
        else:
            await tools.peers.ask(ask, request)
    except NotFound:
        return
    raise Precondition(
        f"model_id {model_id} is a model of the catalogue; take another name for the new one",
        differences={"model_id": f"{model_id} is taken"},
    )


def sequence_length(training: language_pb2.LanguageTraining, models: Sequence[ModelPlan]) -> int:
    """Return the tokens of a packed sequence. Raises Precondition where a context is shorter."""
    shortest = min(
        (model for model in models if model["context_length"]),
        key=lambda model: model["context_length"],
        default=NO_MODEL,
    )
    limit = shortest["context_length"] or training.sequence_length or DEFAULT_SEQUENCE
    if training.sequence_length > limit:
        raise Precondition(
            f"sequence_length is {training.sequence_length:,} and the context of "
            f"{shortest['name']} has {limit:,} tokens",
            differences={"sequence_length": f"{training.sequence_length:,} over {limit:,}"},
        )
    return min(training.sequence_length or DEFAULT_SEQUENCE, limit)


async def check_fields(
    tools: Tools, project: str, dataset: DatasetPlan, mode: str, *, answers_alone: bool = False
) -> bool:
    """Return whether the dataset has conversations. Raises Precondition unless it has records that
    the mode can use, and where it has plain texts for a loss that takes `answers_alone`."""

    def read() -> TextManifest:
        return TextManifest.from_bytes(tools.blobs.get(project, dataset["manifest"]))

    manifest = await asyncio.to_thread(read)
    counts = manifest.field_counts
    if not any(counts.get(field) for field in _FIELDS[mode]):
        there = ", ".join(f"{n:,} {field}" for field, n in sorted(counts.items())) or "nothing"
        raise Precondition(
            f"dataset {dataset['name']} has no {' or '.join(_FIELDS[mode])}, which {mode} needs; "
            f"its {dataset['items']:,} records have {there}",
            differences={"fields": f"{' or '.join(_FIELDS[mode])} instead of {there}"},
        )
    if answers_alone and (counts.get("text") or not counts.get("answer")):
        raise Precondition(
            f"dataset {dataset['name']} has {counts.get('text', 0):,} plain texts and "
            f"{counts.get('answer', 0):,} answers; LANGUAGE_LOSS_ULD needs prompts with answers "
            "alone, since two tokenizers cut a plain text at different places",
            differences={"fields": f"{counts.get('text', 0):,} plain texts"},
        )
    if not manifest.count("train"):
        raise Precondition(f"dataset {dataset['name']} has no train records")
    return bool(counts.get("chat"))
