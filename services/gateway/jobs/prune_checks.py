"""Whether model, datasets and size of a prune job fit together, before it costs anything."""

from __future__ import annotations

import asyncio

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common import names
from services.common.errors import Precondition
from services.common.texts import TextManifest
from services.gateway.jobs.job import Tools
from services.gateway.jobs.language_checks import (
    Names,
    check_chat,
    check_fields,
    check_free,
    model_plan,
    sequence_length,
)
from services.gateway.jobs.plans import ModelPlan, PrunePlan, TextInputs
from services.gateway.jobs.prune_specs import models_of, parameters_of, size_of
from services.gateway.jobs.text_data import measured_datasets


def prune_names(spec: pb.PruneJobSpec) -> Names:
    """Return the datasets of a prune job."""
    return spec.dataset, list(spec.evaluation_datasets), "", ""


async def check_prune_job(
    tools: Tools, spec: pb.PruneJobSpec, inputs: TextInputs, *, patient: bool
) -> PrunePlan:
    """Check a prune job; `patient` waits for services that are away.

    Raises NotFound for an unknown model, Precondition for what does not fit. How small a model can
    get is known once its importance is measured.
    """
    assert inputs["dataset"] is not None
    project, _ = names.parse(spec.dataset, "datasets")
    converses = await check_fields(tools, project, inputs["dataset"], "stored_targets")
    model = await model_plan(tools, spec.model, methods=["SampleTargets"], patient=patient)
    check_chat([model], chat=converses)
    check_whole(model)
    check_cuts(spec, model)
    for model_id in models_of(spec):
        await check_free(tools, project, model_id, patient=patient)
    if spec.candidates > 1 or spec.training.patience:
        await check_held_out(tools, project, inputs)
    length = sequence_length(spec.training, [model])
    return PrunePlan(inputs=inputs, model=model, sequence_length=length, correction="")


def check_whole(model: ModelPlan) -> None:
    """Raise Precondition for an adapter, which has no parts of its own to cut."""
    if model["base"]:
        raise Precondition(
            f"{model['name']} is an adapter on {model['base']}; prune a whole model",
            differences={"model": f"adapter on {model['base']}"},
        )


def check_cuts(spec: pb.PruneJobSpec, model: ModelPlan) -> None:
    """Raise Precondition where the whole model is within the size already."""
    most = parameters_of(spec)
    if most is not None and 0 < model["parameter_count"] <= most:
        field, value = size_of(spec)
        whole = f"{model['parameter_count']:,} parameters"
        raise Precondition(
            f"{field} is {value:,.0f}, room for {most:,.0f} parameters, and {model['name']} has "
            f"{whole}: nothing is to be cut",
            differences={field: f"{most:,.0f} of {whole}"},
        )


async def check_held_out(tools: Tools, project: str, inputs: TextInputs) -> None:
    """Raise Precondition where no dataset has a record to measure on during training."""

    def count() -> int:
        found = [tools.blobs.get(project, one["manifest"]) for one in measured_datasets(inputs)]
        return sum(TextManifest.from_bytes(data).count("test") for data in found)

    if not await asyncio.to_thread(count):
        raise Precondition(
            "no dataset has test records, which candidates are ranked on and `patience` stops by",
            differences={"test": "0 records"},
        )
