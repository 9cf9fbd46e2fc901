"""What must hold before a job costs anything: dataset, teacher and encoder fit together.

Whatever does not is FAILED_PRECONDITION and says what differs.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence

from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common import names
from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, Precondition
from services.common.manifest import Manifest
from services.gateway.datasets import records as datasets
from services.gateway.jobs.job import Job, Tools
from services.gateway.jobs.plans import ConceptPlan, DatasetPlan, EncoderPlan, TeacherPlan
from services.gateway.store import DatasetRow

DEFAULT_ENCODER = "effl2-minilm"
DEFAULT_CONCEPT_SET = "everyday"
_POLL_S = 0.2
_LISTED = 5
_FEWEST_PER_CLASS = 2
_FEWEST_ITEMS = 10
_KEPT_MANIFESTS = 4
"""Manifests in memory, about 1 KB an image each."""


def check_concept_spec(project: str, spec: jobs_pb2.ConceptJobSpec) -> None:
    """Raise InvalidInput for what is malformed or reaches into another project."""
    owned(project, spec.dataset, "datasets", "dataset")
    owned(project, spec.teacher, "models", "teacher")
    if spec.encoder:
        owned(project, spec.encoder, "encoders", "encoder")
    if spec.concept_set:
        owned(project, spec.concept_set, "conceptSets", "concept_set")
    if spec.student_id:
        names.check_id(spec.student_id, field="student_id")
    for field in ("l1", "nec"):
        value = getattr(spec, field)
        if not 0 <= value < float("inf"):
            raise InvalidInput(f"{field}: must be finite and not negative", field=field)
    if spec.WhichOneof("sparsity") == "l1" and spec.l1 == 0:
        raise InvalidInput("l1: must be more than 0", field="l1")


def check_head_spec(project: str, spec: jobs_pb2.TeacherHeadJobSpec) -> None:
    """As `check_concept_spec`."""
    owned(project, spec.dataset, "datasets", "dataset")
    owned(project, spec.backbone, "models", "backbone")
    if spec.model_id:
        names.check_id(spec.model_id, field="model_id")


async def wait_for_dataset(job: Job, name: str, *, texts: bool = False) -> DatasetPlan:
    """Wait until the dataset is READY. Raises NotFound, Precondition where it has FAILED or holds
    images instead of texts, or texts instead of images."""
    unit = "records" if texts else "images"
    while True:
        row = await asyncio.to_thread(datasets.get, job.tools.store, *names.parse(name, "datasets"))
        if row.state != "CREATING":
            plan = dataset_plan(row, texts=texts)
            await job.progress.update("ingest", done=plan["items"], total=plan["items"], unit=unit)
            return plan
        await job.progress.update("ingest", done=row.item_count, total=0, unit=unit)
        await asyncio.sleep(_POLL_S)


def dataset_plan(row: DatasetRow, *, texts: bool = False) -> DatasetPlan:
    """Return what later stages need of a READY dataset. Raises Precondition for any other, and for
    one of the other kind."""
    name = datasets.name_of(row)
    if datasets.holds_texts(row) != texts:
        holds, wants = ("images", "texts") if texts else ("texts", "images")
        raise Precondition(
            f"dataset {name} holds {holds}, and this kind of job needs {wants}",
            differences={"dataset": f"{holds} instead of {wants}"},
        )
    if row.state == "CREATING":
        raise Precondition(f"dataset {name} is still being read; try again when it is READY")
    if row.state != "READY":
        message: datasets_pb2.Dataset = datasets.to_message(row)
        raise Precondition(f"dataset {name} could not be read: {message.error.message}")
    return DatasetPlan(name=name, manifest=row.manifest_digest, items=row.item_count)


async def check_concept_job(
    tools: Tools, spec: jobs_pb2.ConceptJobSpec, dataset: DatasetPlan, *, patient: bool
) -> ConceptPlan:
    """Check a concept job; `patient` waits for services that are away. Raises Precondition."""
    project, _ = names.parse(spec.dataset, "datasets")
    manifest = await read_manifest(tools, project, dataset)
    model = await classifier_model(tools, spec.teacher, patient=patient)
    encoder = await _encoder(tools, encoder_name(project, spec), patient=patient)
    check_labels(model, manifest, dataset["name"])
    check_counts(manifest, dataset["name"])
    return ConceptPlan(
        dataset=dataset,
        teacher=teacher_plan(spec.teacher, model, manifest),
        encoder=encoder,
        multi_label=manifest.multi_label,
    )


async def check_head_job(
    tools: Tools, spec: jobs_pb2.TeacherHeadJobSpec, dataset: DatasetPlan, *, patient: bool
) -> TeacherPlan:
    """Check a teacher-head job and return the backbone. Raises Precondition."""
    project, _ = names.parse(spec.dataset, "datasets")
    manifest = await read_manifest(tools, project, dataset)
    model = await classifier_model(tools, spec.backbone, patient=patient)
    if model.image_classifier.feature_dim < 1:
        raise Precondition(f"{spec.backbone} has no feature vector, so no head can stand on it")
    check_counts(manifest, dataset["name"])
    return TeacherPlan(name=spec.backbone, digest=model.digest, classes=[], columns=[])


def teacher_plan(name: str, model: teacher_pb2.Model, manifest: Manifest) -> TeacherPlan:
    """Return a teacher of exactly the manifest's classes, with its logits in their order."""
    order = {label: at for at, label in enumerate(model.image_classifier.classes)}
    return TeacherPlan(
        name=name,
        digest=model.digest,
        classes=list(manifest.classes),
        columns=[order[label] for label in manifest.classes],
    )


async def read_manifest(tools: Tools, project: str, dataset: DatasetPlan) -> Manifest:
    """Return the dataset's manifest; a job reads it several times, and so do others on the same
    dataset."""
    return await asyncio.to_thread(_manifest, tools.blobs, project, dataset["manifest"])


@functools.lru_cache(maxsize=_KEPT_MANIFESTS)
def _manifest(blobs: BlobStore, project: str, digest: str) -> Manifest:
    return Manifest.from_bytes(blobs.get(project, digest))


def encoder_name(project: str, spec: jobs_pb2.ConceptJobSpec) -> str:
    """Return the encoder that a job uses."""
    return spec.encoder or names.join(project, "encoders", DEFAULT_ENCODER)


async def classifier_model(tools: Tools, name: str, *, patient: bool) -> teacher_pb2.Model:
    """Return an image classifier. Raises NotFound, Precondition for another kind of model."""
    request = teacher_pb2.GetModelRequest(name=name)
    method, long_s = tools.peers.teacher.GetModel, tools.peers.shard_timeout_s
    if patient:
        reply = await tools.peers.insist(method, request, what="teacher", timeout_s=long_s)
    else:
        reply = await tools.peers.ask(method, request)
    if reply.model.WhichOneof("spec") != "image_classifier":
        raise Precondition(f"{name} is not an image classifier")
    return reply.model


async def _encoder(tools: Tools, name: str, *, patient: bool) -> EncoderPlan:
    request = concepts_pb2.GetEncoderRequest(name=name)
    method, long_s = tools.peers.concepts.GetEncoder, tools.peers.shard_timeout_s
    if patient:
        reply = await tools.peers.insist(method, request, what="encoder", timeout_s=long_s)
    else:
        reply = await tools.peers.ask(method, request)
    encoder = reply.encoder
    if not encoder.region_map_shape:
        raise Precondition(
            f"encoder {name} cannot embed regions: its head has no dense adapter; choose another"
        )
    return EncoderPlan(
        name=name,
        digest=encoder.digest,
        preprocessing_digest=encoder.preprocessing_digest,
        region_digest=encoder.region_digest,
        dim=encoder.embedding_dim,
    )


def check_labels(model: teacher_pb2.Model, manifest: Manifest, dataset: str) -> None:
    """Raise Precondition unless teacher and dataset have the same classes and kind of labels."""
    spec = model.image_classifier
    differences: dict[str, str] = {}
    if spec.single_label == manifest.multi_label:
        kinds = {True: "one label per image", False: "several labels per image"}
        differences["labels"] = (
            f"the teacher gives {kinds[spec.single_label]}, "
            f"the dataset has {kinds[not manifest.multi_label]}"
        )
    unknown = [name for name in manifest.classes if name not in set(spec.classes)]
    extra = [name for name in spec.classes if name not in set(manifest.classes)]
    if unknown:
        differences["classes of the dataset"] = f"the teacher does not know {_some(unknown)}"
    if extra:
        differences["classes of the teacher"] = f"the dataset does not have {_some(extra)}"
    if differences:
        text = "; ".join(differences.values())
        raise Precondition(
            f"{model.name} and {dataset} do not fit together: {text}", differences=differences
        )


def check_counts(manifest: Manifest, dataset: str) -> None:
    """Cross-validation needs a few items of every class; the report needs a test split."""
    splits = Counter(item.split for item in manifest.items)
    seen = Counter(k for item in manifest.items if item.split != "test" for k in item.labels)
    differences: dict[str, str] = {}
    if not splits["test"]:
        differences["test"] = "the test split is empty"
    if splits["train"] + splits["val"] < _FEWEST_ITEMS:
        found = splits["train"] + splits["val"]
        differences["train"] = f"train and val have {found} images; {_FEWEST_ITEMS} are needed"
    scarce = [name for k, name in enumerate(manifest.classes) if seen[k] < _FEWEST_PER_CLASS]
    if scarce:
        differences["classes"] = (
            f"fewer than {_FEWEST_PER_CLASS} images in train and val of {_some(scarce)}"
        )
    if differences:
        text = "; ".join(differences.values())
        raise Precondition(f"{dataset} is too small: {text}", differences=differences)


def owned(project: str, name: str, collection: str, field: str) -> None:
    """Raise InvalidInput unless `name` is of the collection and the project."""
    owner, _ = names.parse(name, collection, field=field)
    if owner != project:
        raise InvalidInput(f"{field}: {name} is not of project {project}", field=field)


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
    return ", ".join(repr(name) for name in found[:_LISTED]) + more
