"""What must hold before a classifier job costs anything: data, teacher and network fit together."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.teacher.v1 import teacher_pb2

from services.common import names
from services.common.catalogue import load_catalogue
from services.common.errors import NotFound, Precondition
from services.common.manifest import Manifest
from services.common.shards import SHARD_ITEMS
from services.gateway.jobs.checks import (
    check_counts,
    check_labels,
    classifier_model,
    read_manifest,
    teacher_plan,
)
from services.gateway.jobs.classifier_specs import augmentation_of, model_id_of
from services.gateway.jobs.job import Tools
from services.gateway.jobs.language_checks import check_free
from services.gateway.jobs.plans import ClassifierPlan, DatasetPlan

_ROOM = 0.9
"""Share of a message that outputs may fill: the rest is for names and frames."""


async def check_classifier_job(
    tools: Tools, spec: pb.ClassifierJobSpec, dataset: DatasetPlan, *, patient: bool
) -> ClassifierPlan:
    """Check a classifier job; `patient` waits for services that are away.

    An architecture is known to the student service alone, which refuses it before it trains.
    Raises NotFound, Precondition.
    """
    project, _ = names.parse(spec.dataset, "datasets")
    manifest = await read_manifest(tools, project, dataset)
    model = await classifier_model(tools, spec.teacher, patient=patient)
    check_labels(model, manifest, dataset["name"])
    check_counts(manifest, dataset["name"])
    if not part(manifest, "train").items:
        raise Precondition(
            f"{dataset['name']} is too small: the train split is empty",
            differences={"train": "no images"},
        )
    _check_outputs(tools, spec, model)
    await asyncio.to_thread(_check_weights, tools, spec)
    await check_free(tools, project, model_id_of(spec), patient=patient)
    return ClassifierPlan(
        dataset=dataset,
        teacher=teacher_plan(spec.teacher, model, manifest),
        feature_dim=model.image_classifier.feature_dim if spec.training.feature_weight else 0,
    )


def part(manifest: Manifest, split: str) -> Manifest:
    """Return the manifest of one split's items, in their order."""
    return replace(manifest, items=tuple(i for i in manifest.items if i.split == split))


def _check_outputs(tools: Tools, spec: pb.ClassifierJobSpec, model: teacher_pb2.Model) -> None:
    """Refuse features that a teacher has not, and views whose outputs no message would hold."""
    classifier, width = model.image_classifier, 4 * len(model.image_classifier.classes)
    if spec.training.feature_weight:
        if classifier.feature_dim < 1:
            raise Precondition(
                f"training.feature_weight: {spec.teacher} has no feature vector to match",
                differences={"features": "none"},
            )
        width += 2 * classifier.feature_dim
    most = int(_ROOM * tools.settings.max_message_bytes / (width * SHARD_ITEMS))
    views = augmentation_of(spec).views
    if views > most:
        raise Precondition(
            f"augmentation.views: the outputs of {views} views are too large to be sent; "
            f"take {most} or fewer, or raise the services' max_message_bytes",
            differences={"augmentation.views": f"{views} instead of {most} at most"},
        )


def _check_weights(tools: Tools, spec: pb.ClassifierJobSpec) -> None:
    """Refuse weights of another architecture, where this gateway's catalogue has them."""
    if not spec.weights:
        return
    own = tools.settings.catalogue
    try:
        entry = load_catalogue([own] if own else []).image_model(spec.weights)
    except NotFound:
        return  # the student service may have a catalogue of its own, and says so if not
    if entry.loader != "timm":
        raise Precondition(
            f"weights: {entry.id} is no timm model, and a student begins from one",
            differences={"loader": entry.loader},
        )
    if spec.architecture not in ("", entry.architecture):
        raise Precondition(
            f"weights: {entry.id} is a {entry.architecture}, not a {spec.architecture}",
            differences={"architecture": f"{entry.architecture} in {entry.id}"},
        )
