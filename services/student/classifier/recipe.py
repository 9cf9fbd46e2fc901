"""The classifier recipe: read, build, train, measure, store.

Everything that can be refused is refused before the first step. A worker that takes over after a
crash goes on from the trainer's last checkpoint, so that it ends with the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from google.protobuf.json_format import MessageToDict
from safetensors.torch import save
from stillhouse.student.v1 import student_pb2
from torch import Tensor, nn

from services.common import images
from services.common.classifier_records import ClassifierRecord
from services.common.errors import Precondition, Unsupported
from services.common.tensors import pack_arrays
from services.student.artefacts import Card, to_json
from services.student.classifier.course import Course, Progress
from services.student.classifier.data import (
    ClassifierData,
    ImageSource,
    make_batch,
    normalised,
    read_data,
)
from services.student.classifier.inference import held_out, logits_of
from services.student.classifier.networks import StudentNetwork, Trained, build_student
from services.student.classifier.onnx_export import export_classifier, onnx_latency_ms
from services.student.classifier.options import (
    ClassifierOptions,
    check_classifier,
    read_options,
)
from services.student.classifier.plan import Plan
from services.student.classifier.reports import Stored, make_report
from services.student.classifier.training import fit
from services.student.data import Doubles, Ints, read_manifest
from services.student.head_recipe import put
from services.student.recipes import Training
from services.student.training_loop import check_finite
from services.torch_common.language.precision import dtype_of


def train_classifier(
    training: Training, recipe: student_pb2.ClassifierRecipe
) -> student_pb2.ClassifierResult:
    """Train, measure, store. Raises NotFound, InvalidInput, Precondition for what cannot be."""
    check_classifier(recipe)
    options = read_options(recipe)
    training.progress("reading the data", 0, 0)
    labels = read_manifest(training.blobs, training.project, recipe.data.manifest)
    around = training.surroundings
    limits = images.Limits(around.max_image_bytes, around.max_image_pixels)
    source = ImageSource(training.blobs, training.project, labels, limits)
    data = read_data(training, recipe, options.augmentation, source)
    training.progress("building the student", 0, 0)
    student = build_student(training, recipe, labels.classes, options.seed)
    dtype = dtype_of(options.precision or around.precision, around.device)
    student, progress = _fit(training, recipe, options, data, student, source, dtype)
    return _finish(training, recipe, data, student, source, progress, dtype)


def _device(training: Training) -> torch.device:
    return torch.device(training.surroundings.device)


def _fit(
    training: Training,
    recipe: student_pb2.ClassifierRecipe,
    options: ClassifierOptions,
    data: ClassifierData,
    student: StudentNetwork,
    source: ImageSource,
    dtype: torch.dtype,
) -> tuple[StudentNetwork, Progress]:
    """The student trained. Only the first rank comes back from here."""
    count, device, ranks = len(data.train), _device(training), training.ranks
    if options.batch_images < ranks.world:
        raise Precondition(
            f"training.batch_images: {options.batch_images} for {ranks.world} processes; use at "
            f"least {ranks.world}, or fewer STUDENT_PROCESSES",
            differences={"batch_images": f"{options.batch_images} < {ranks.world}"},
        )
    views, steps = options.augmentation, options.steps(count)
    plan = Plan(count, views.views, options.batch_images, options.seed)
    preprocessing = student.preprocessing
    matched = 0
    if options.feature_weight and data.views is not None and data.views.features is not None:
        matched = data.views.features.shape[2]
    course = Course(
        steps=steps,
        batch=lambda step: make_batch(data, source, plan, step, views, preprocessing, ranks),
        images=lambda batch: normalised(batch.pixels, preprocessing, device),
        heldout=held_out(data, source, preprocessing, device),
    )
    training.progress("training", 0, steps)
    loss = options.loss(multi_label=data.labels.multi_label)
    trained, progress = fit(Trained(student, matched), course, options, loss, training, dtype=dtype)
    ranks.leave()
    return replace(student, module=trained.student), progress


def _finish(
    training: Training,
    recipe: student_pb2.ClassifierRecipe,
    data: ClassifierData,
    student: StudentNetwork,
    source: ImageSource,
    progress: Progress,
    dtype: torch.dtype,
) -> student_pb2.ClassifierResult:
    """Measure on val and test, and store everything."""
    device, blobs, project = _device(training), training.blobs, training.project
    logits = {
        split: _logits(training, source, student, rows, split)
        for split, rows in (("val", data.val), ("test", data.test))
        if len(rows)
    }
    training.progress("storing the student", 0, 0)
    result = student_pb2.ClassifierResult(
        weights=put(blobs, project, save(_weights_of(student.module)))
    )
    stored = Stored(result.weights.size_bytes)
    if not recipe.skip_onnx:
        stored = _store_onnx(training, data, student, result)
    if "test" in logits:
        packed = _pack_predictions(data, logits["test"])
        result.predictions.CopyFrom(put(blobs, project, packed))
    report = make_report(data, student, logits, progress, stored, device)
    report |= _settings(recipe, dtype) | {"provenance": dict(recipe.provenance)}
    record = _record(recipe, data, student, progress, result.weights.digest, dtype)
    result.card.CopyFrom(put(blobs, project, record.to_bytes()))
    result.report.CopyFrom(put(blobs, project, to_json(report)))
    return result


def _logits(
    training: Training, source: ImageSource, student: StudentNetwork, rows: Ints, split: str
) -> Doubles:
    logits = logits_of(
        student.module,
        source,
        rows,
        student.preprocessing,
        _device(training),
        told=lambda done, total: training.progress(f"measuring on {split}", done, total),
    )
    check_finite(float(logits.sum()), f"the sum of the logits on {split}")
    return logits


def _store_onnx(
    training: Training,
    data: ClassifierData,
    student: StudentNetwork,
    result: student_pb2.ClassifierResult,
) -> Stored:
    """Write the ONNX file; a network that has none is still a student, and the report says why."""
    labels, size = data.labels, result.weights.size_bytes
    try:
        written = export_classifier(
            student.module,
            student.preprocessing,
            labels.classes,
            multi_label=labels.multi_label,
        )
    except Unsupported as error:
        return Stored(size, no_onnx=error.message)
    result.onnx.CopyFrom(put(training.blobs, training.project, written))
    latency = onnx_latency_ms(written, student.input.size_px, torch.get_num_threads())
    return Stored(size, onnx_bytes=len(written), onnx_ms=latency)


def _weights_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, on the CPU, in one layout."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


def _pack_predictions(data: ClassifierData, logits: Doubles) -> bytes:
    raw = b"".join(bytes.fromhex(data.labels.digests[row]) for row in data.test)
    digests = np.frombuffer(raw, np.uint8).reshape(-1, 32)
    return pack_arrays({"logits": logits.astype("<f4"), "digests": digests})


def _settings(recipe: student_pb2.ClassifierRecipe, dtype: torch.dtype) -> Card:
    """What was asked for, as the card and the report quote it."""
    asked: dict[str, Any] = {
        "training": MessageToDict(recipe.training, preserving_proto_field_name=True),
        "augmentation": MessageToDict(recipe.augmentation, preserving_proto_field_name=True),
        "weights": recipe.weights,
        "hard_only": recipe.hard_only,
        "precision": str(dtype).removeprefix("torch."),
    }
    return {"settings": asked}


def _record(
    recipe: student_pb2.ClassifierRecipe,
    data: ClassifierData,
    student: StudentNetwork,
    progress: Progress,
    weights: str,
    dtype: torch.dtype,
) -> ClassifierRecord:
    """What TeacherService serves the student by; the card in it says where it came from."""
    refs = {"teacher_shards": recipe.data.teacher_shards, "view_shards": recipe.view_shards}
    card = _settings(recipe, dtype) | {
        "steps": progress.step,
        "provenance": dict(recipe.provenance),
        "data": {
            "manifest": recipe.data.manifest.digest,
            **{name: [ref.digest for ref in some] for name, some in refs.items()},
        },
    }
    return ClassifierRecord(
        architecture=student.architecture,
        classes=data.labels.classes,
        single_label=not data.labels.multi_label,
        weights=weights,
        input=student.input,
        variant=student.variant,
        licence=student.licence,
        card=card,
    )
