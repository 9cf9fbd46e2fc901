"""Whether the models and datasets of a tuneshift job fit together, before it costs anything."""

from __future__ import annotations

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common import names
from services.common.errors import Precondition
from services.gateway.jobs.job import Tools
from services.gateway.jobs.language_checks import (
    NO_MODEL,
    Names,
    check_chat,
    check_free,
    different_tokens,
    model_plan,
    same_tokens,
    sequence_length,
)
from services.gateway.jobs.plans import ModelPlan, TextInputs, TuneShiftPlan
from services.gateway.jobs.tuneshift_specs import model_id_of


def tuneshift_names(spec: pb.TuneShiftJobSpec) -> Names:
    """Return the datasets of a tuneshift job."""
    return "", list(spec.evaluation_datasets), spec.replay_dataset, spec.off_domain_dataset


async def check_tuneshift_job(
    tools: Tools, spec: pb.TuneShiftJobSpec, inputs: TextInputs, *, patient: bool
) -> TuneShiftPlan:
    """Check a tuneshift job; `patient` waits for services that are away.

    Raises NotFound for an unknown model, Precondition for models that cannot be compared.
    """

    async def model(name: str, *methods: str) -> ModelPlan:
        return await model_plan(tools, name, methods=methods, patient=patient)

    base, tuned = await model(spec.base, "Score"), await model(spec.tuned, "Generate", "Score")
    if not same_tokens(base, tuned):
        raise different_tokens("base", base, "tuned", tuned)
    if base["digest"] == tuned["digest"]:
        raise Precondition(
            f"base {base['name']} and tuned {tuned['name']} have the same weights, so there is "
            "nothing to carry over",
            differences={"digest": f"{base['digest'][:12]} twice"},
        )
    target = await model(spec.target)
    generator = await model(spec.generator, "Generate") if spec.generator else tuned
    style = await model(spec.style_model, "Generate", "Score") if spec.style_model else NO_MODEL
    if style["name"] and not same_tokens(base, style):
        raise different_tokens("base", base, "style_model", style)
    project, _ = names.parse(spec.target, "models")
    await check_free(tools, project, model_id_of(spec), patient=patient)
    check_chat([base, tuned, target, style], chat=spec.chat)
    return TuneShiftPlan(
        inputs=inputs,
        base=base,
        tuned=tuned,
        target=target,
        generator=generator,
        style=style,
        sequence_length=sequence_length(spec.training, [target]),
    )
