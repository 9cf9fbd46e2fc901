"""What a job would cost: images, cached ones, seconds from a measured forward pass, bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypedDict

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.manifest import Item
from services.gateway.jobs.checks import read_manifest
from services.gateway.jobs.classifier_checks import part
from services.gateway.jobs.classifier_specs import arms_of, augmentation_of, batch_of, steps_of
from services.gateway.jobs.job import Tools
from services.gateway.jobs.outputs import (
    embed,
    feature_stage,
    region_stage,
    space_of,
    teacher_stage,
    view_stage,
)
from services.gateway.jobs.plans import ClassifierPlan, ConceptPlan, DatasetPlan, TeacherPlan
from services.gateway.jobs.shard_stage import ShardStage, missing_items

_SAMPLE = 16
"""Images of the measured pass: one padded batch. Caches keep its results, so nothing is wasted."""
_REGIONS = 24
_MAP_CELLS = 100
_WORDS_S = 5.0
_FIT_S = 3.0
_FIT_S_PER_CELL = 1.5e-5
"""Seconds per image, class and control draw; measured on 2 cores."""
_DEFAULT_DRAWS = 20
_FEATURE_BYTES = 2 * 1280


class Estimate(TypedDict):
    """What a job would cost. `cached` counts images whose regions (or features) exist."""

    items: int
    cached: int
    stage_s: dict[str, float]
    stored_bytes: int


async def estimate_concept_job(
    tools: Tools, project: str, plan: ConceptPlan, draws: int
) -> Estimate:
    """Estimate a concept job; measures one forward pass of each model whose speed is unknown."""
    manifest = await read_manifest(tools, project, plan["dataset"])
    teacher, encoder = plan["teacher"], plan["encoder"]
    outputs, regions = teacher_stage(tools, teacher), region_stage(tools, project, encoder)
    to_classify = await missing_items(tools.blobs, project, outputs, manifest)
    to_embed = await missing_items(tools.blobs, project, regions, manifest)
    space = space_of(project, encoder)
    in_redis = await tools.cache.count(space, [item.digest for item in to_embed])
    fresh = len(to_embed) - in_redis

    async def measure_encoder(items: Sequence[Item]) -> None:
        found, _ = await embed(tools, encoder, [item.digest for item in items])
        await tools.cache.put(space, found)

    teacher_s = await _speed(tools, teacher["digest"], to_classify, outputs.compute)
    encoder_s = await _speed(tools, encoder["digest"], to_embed if fresh else [], measure_encoder)
    classes, count = len(teacher["classes"]), len(manifest.items)
    fits = 1 + (0 if draws < 0 else draws or _DEFAULT_DRAWS)
    return Estimate(
        items=count,
        cached=count - fresh,
        stage_s={
            "teacher_outputs": len(to_classify) * teacher_s,
            "regions": fresh * encoder_s,
            "concepts": _WORDS_S,
            "fit": _FIT_S + count * classes * fits * _FIT_S_PER_CELL,
        },
        stored_bytes=len(to_classify) * 4 * classes
        + len(to_embed) * (_REGIONS * 2 * encoder["dim"] + _MAP_CELLS),
    )


async def estimate_head_job(
    tools: Tools, project: str, dataset: DatasetPlan, backbone: TeacherPlan
) -> Estimate:
    """Estimate a teacher-head job."""
    manifest = await read_manifest(tools, project, dataset)
    features: ShardStage = feature_stage(tools, backbone)
    missing = await missing_items(tools.blobs, project, features, manifest)
    item_s = await _speed(tools, backbone["digest"], missing, features.compute)
    return Estimate(
        items=len(manifest.items),
        cached=len(manifest.items) - len(missing),
        stage_s={"features": len(missing) * item_s, "fit": _FIT_S},
        stored_bytes=len(missing) * _FEATURE_BYTES,
    )


async def estimate_classifier_job(
    tools: Tools, project: str, spec: pb.ClassifierJobSpec, plan: ClassifierPlan
) -> Estimate:
    """Estimate a classifier job. The teacher's speed is measured on test images, so that it sees
    the training images once; a student's training step on an image is guessed at one forward pass
    of the teacher."""
    manifest = await read_manifest(tools, project, plan["dataset"])
    test, train = part(manifest, "test"), part(manifest, "train")
    outputs = teacher_stage(tools, plan["teacher"])
    augmentation, width = augmentation_of(spec), plan["feature_dim"]
    views = view_stage(tools, plan["teacher"], augmentation, features=width > 0)
    to_classify = await missing_items(tools.blobs, project, outputs, test)
    to_view = await missing_items(tools.blobs, project, views, train)
    sample = (to_classify or test.items) if to_view else to_classify
    item_s = await _speed(tools, plan["teacher"]["digest"], sample, outputs.compute)
    runs = len(arms_of(spec)) * (spec.training_seeds or 1)
    steps, batch = steps_of(spec.training, len(train.items)), batch_of(spec.training)
    classes, passes = len(plan["teacher"]["classes"]), len(to_view) * augmentation.views
    return Estimate(
        items=len(train.items) + len(test.items),
        cached=len(train.items) - len(to_view) + len(test.items) - len(to_classify),
        stage_s={
            "teacher_outputs": len(to_classify) * item_s,
            "teacher_views": passes * item_s,
            "fit": runs * (_FIT_S + steps * batch * item_s),
        },
        stored_bytes=4 * classes * len(to_classify) + 2 * (classes + width) * passes,
    )


async def _speed(
    tools: Tools,
    digest: str,
    missing: Sequence[Item],
    measure: Callable[[Sequence[Item]], Awaitable[object]],
) -> float:
    """Return seconds per image of a model: as last measured, else by one pass now."""
    if missing and digest not in tools.item_s:
        await measure(missing[:_SAMPLE])
    return tools.item_s.get(digest, 0.0)
