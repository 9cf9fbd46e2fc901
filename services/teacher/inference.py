"""The teacher's models in the Open Inference Protocol: TeacherService's own calls, in its shapes.

Every image goes through Classify, so limits, queue and answers are those of any other caller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from stillhouse.teacher.v1 import teacher_pb2 as pb

from services.common.errors import NotFound, PeerUnavailable, Precondition, from_status
from services.common.inference.images import IMAGES, ImageLimits, failed, read_images
from services.common.inference.model import Answer, Listed, Model, TensorSpec
from services.common.inference.names import MODELS, ModelName, parse_model_name
from services.common.inference.requests import InferCall
from services.common.inference.responses import Output
from services.common.inference.servicer import no_version
from services.common.interceptors import Context
from services.common.predictions import probabilities_of
from services.common.tensors import Array, from_message

LOGITS, PROBABILITIES, EMBEDDINGS = "logits", "probabilities", "embeddings"
_KNOWN = 256
_LANGUAGE = "language models answer TeacherService.Score, SampleTargets and Generate"


class Teacher(Protocol):
    """What of TeacherService stands behind the protocol."""

    def loaded(self, project: str) -> dict[str, str]:
        """Digests of the project's image classifiers that answer at once, by id."""
        ...

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse: ...

    async def GetModel(
        self, request: pb.GetModelRequest, context: Context
    ) -> pb.GetModelResponse: ...

    async def Classify(
        self, request: pb.ClassifyRequest, context: Context
    ) -> pb.ClassifyResponse: ...

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse: ...


@dataclass(frozen=True)
class TeacherModel(Model):
    """A classifier; its version is its digest."""

    resource: str = ""
    single_label: bool = True


class TeacherInference:
    """Image classifiers: images in, logits, probabilities and embeddings out."""

    def __init__(self, teacher: Teacher, limits: ImageLimits) -> None:
        self._teacher, self._limits = teacher, limits
        self._known: OrderedDict[str, TeacherModel] = OrderedDict()

    def name_of(self, name: str) -> str:
        """Return the short name. Raises InvalidInput, or NotFound for a student."""
        return _model_name(name).short

    async def find(self, name: str, version: str, context: Context) -> TeacherModel:
        """Return a classifier. Raises NotFound, or Precondition for a language model."""
        asked = _model_name(name)
        model = self._described(asked) or await self._describe(asked, context)
        if version not in ("", model.version):
            self._known.pop(asked.resource, None)
            model = await self._describe(asked, context)
        _check_version(model, version)
        return model

    async def versions(self, model: TeacherModel, context: Context) -> Sequence[str]:
        """Return the one version there is."""
        return [model.version]

    async def infer(self, model: TeacherModel, call: InferCall, context: Context) -> Answer:
        """Classify the images of a call."""
        request = pb.ClassifyRequest(
            model=model.resource,
            items=await read_images(call, self._limits),
            outputs=_asked(call, model),
        )
        response = await self._teacher.Classify(request, context)
        model = await self._current(model, response.model_digest, context)
        _check_version(model, call.request.model_version)
        for at, one in enumerate(response.results):
            if one.WhichOneof("outcome") != "classification":
                raise failed(at, from_status(one.error))
        return Answer(
            version=model.version,
            items=len(response.results),
            outputs=_outputs(model, call, [one.classification for one in response.results]),
            classes=model.classes,
            timings=response.timings,
        )

    async def is_ready(self, name: str, version: str, context: Context) -> bool:
        """Return whether a model is in memory."""
        asked = _model_name(name)
        digest = self._teacher.loaded(asked.project).get(asked.id)
        if digest is not None:
            return version in ("", digest)
        listed = await self.listed(asked.project, context)
        if asked.short not in {one.name for one in listed}:
            raise NotFound(f"no model {name[:120]!r}", resource=asked.resource)
        return False

    async def listed(self, project: str, context: Context) -> Sequence[Listed]:
        """Return all models of a project."""
        loaded = self._teacher.loaded(project)
        found: list[Listed] = []
        token = ""
        while True:
            request = pb.ListModelsRequest(project=project, page_size=1000, page_token=token)
            page = await self._teacher.ListModels(request, context)
            found += [_listed(project, one, loaded) for one in page.models]
            token = page.next_page_token
            if not token:
                return found

    async def load(self, name: str, context: Context) -> None:
        """Load a model. Raises NotFound, Precondition."""
        await self._describe(_model_name(name), context)

    async def unload(self, name: str, context: Context) -> None:
        """Put a model out of memory. Raises NotFound, or Precondition for the preloaded one."""
        await self._teacher.UnloadModel(
            pb.UnloadModelRequest(name=_model_name(name).resource), context
        )

    def _described(self, asked: ModelName) -> TeacherModel | None:
        """What is known of a model that answers at once: one that is out of memory may be gone, as
        when its project was forgotten."""
        model = self._known.get(asked.resource)
        digest = self._teacher.loaded(asked.project).get(asked.id)
        return model if model is not None and model.version == digest else None

    async def _describe(self, asked: ModelName, context: Context) -> TeacherModel:
        request = pb.GetModelRequest(name=asked.resource)
        described = (await self._teacher.GetModel(request, context)).model
        if described.WhichOneof("spec") != "image_classifier":
            raise Precondition(
                f"{asked.short} is a language model; {_LANGUAGE}",
                differences={"kind": pb.ModelKind.Name(described.kind)},
            )
        model = _model(asked, described)
        self._known[asked.resource] = model
        while len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return model

    async def _current(self, model: TeacherModel, digest: str, context: Context) -> TeacherModel:
        """The description of what has answered, which may have been replaced since `model` was
        described."""
        if model.version != digest:
            model = await self._describe(_model_name(model.resource), context)
        if model.version != digest:
            raise PeerUnavailable(f"{model.name} is being replaced; try again")
        return model


def _model_name(name: str) -> ModelName:
    asked = parse_model_name(name)
    if asked.collection != MODELS:
        raise NotFound(
            f"{asked.short} is a student, which the gateway serves; the teacher serves models",
            resource=asked.resource,
        )
    return asked


def _model(asked: ModelName, described: pb.Model) -> TeacherModel:
    spec = described.image_classifier
    shape = (-1, len(spec.classes))
    outputs = [TensorSpec(LOGITS, "FP32", shape), TensorSpec(PROBABILITIES, "FP32", shape)]
    if spec.feature_dim:
        outputs.append(TensorSpec(EMBEDDINGS, "FP16", (-1, spec.feature_dim)))
    return TeacherModel(
        name=asked.short,
        version=described.digest,
        classes=tuple(spec.classes),
        inputs=(TensorSpec(IMAGES, "BYTES", (-1,)),),
        outputs=tuple(outputs),
        resource=asked.resource,
        single_label=spec.single_label,
    )


def _check_version(model: TeacherModel, version: str) -> None:
    if version not in ("", model.version):
        raise no_version(model.name, version, f"the one there is is {model.version}")


def _asked(call: InferCall, model: TeacherModel) -> list[pb.ClassifyOutput.ValueType]:
    wanted = [pb.CLASSIFY_OUTPUT_LOGITS]
    if call.asks(EMBEDDINGS) and any(one.name == EMBEDDINGS for one in model.outputs):
        wanted.append(pb.CLASSIFY_OUTPUT_FEATURES)
    return wanted


def _outputs(
    model: TeacherModel, call: InferCall, answers: Sequence[pb.Classification]
) -> list[Output]:
    logits = np.stack([from_message(one.logits) for one in answers])
    outputs = [Output.numbers(LOGITS, logits)]
    if call.asks(PROBABILITIES):
        found: Array = probabilities_of(logits, multi_label=not model.single_label)
        outputs.append(Output.numbers(PROBABILITIES, found.astype(np.float32)))
    if all(one.HasField("features") for one in answers):
        rows = np.stack([from_message(one.features) for one in answers])
        outputs.append(Output.numbers(EMBEDDINGS, rows))
    return outputs


def _listed(project: str, model: pb.Model, loaded: dict[str, str]) -> Listed:
    model_id = model.name.rsplit("/", 1)[-1]
    name = ModelName(project, MODELS, model_id).short
    if model.kind == pb.MODEL_KIND_LANGUAGE_MODEL:
        return Listed(name, ready=False, reason=_LANGUAGE)
    if model_id in loaded:
        return Listed(name, version=loaded[model_id])
    return Listed(name, ready=False, reason="not in memory; loads when first asked")
