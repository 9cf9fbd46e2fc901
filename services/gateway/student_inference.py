"""Students by name in the Open Inference Protocol: images in, a tuned student's answer out.

An image's regions are embedded once, whatever is asked of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2

from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue
from services.common.errors import NotFound, Unsupported, from_status
from services.common.inference.images import IMAGES, ImageLimits, failed, read_images
from services.common.inference.model import Answer, Listed, Model, TensorSpec
from services.common.inference.names import STUDENTS, ModelName, parse_model_name
from services.common.inference.requests import InferCall
from services.common.inference.responses import Output
from services.common.inference.students import (
    LABEL,
    asks_contributions,
    contribution_outputs,
    explanations_of,
    prediction_outputs,
    predictions_of,
    student_specs,
    top_of,
)
from services.common.interceptors import Context
from services.common.timings import together
from services.gateway import students
from services.gateway.cache import Regions
from services.gateway.paging import page
from services.gateway.peers import Peers
from services.gateway.store import Store
from services.gateway.student_access import StudentAccess
from services.gateway.student_calls import Outcome, Serving

EMBEDDINGS = "embeddings"
_PAGE = 1000


@dataclass(frozen=True)
class ServedStudent(Model):
    """A student's version; its number is the protocol's version."""

    serving: Serving | None = None


class StudentInference(StudentAccess):
    """The students of all projects."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        peers: Peers,
        catalogue: Catalogue,
        limits: ImageLimits,
    ) -> None:
        super().__init__(store, blobs, peers, catalogue, max_batch_items=limits.max_items)
        self._limits = limits

    def name_of(self, name: str) -> str:
        """Return the short name. Raises InvalidInput, or NotFound for a model."""
        return _student_name(name).short

    async def find(self, name: str, version: str, context: Context) -> ServedStudent:
        """Return a version, the promoted one where none is named; `head` and `promoted` are
        understood. Raises NotFound, InvalidInput."""
        asked = _student_name(name)
        _, row, serving = await self._serving(asked.resource, version, "promoted")
        classes, width = serving.file.classes, int(serving.file.text.shape[1])
        return ServedStudent(
            name=asked.short,
            version=str(row.number),
            classes=tuple(classes),
            inputs=(TensorSpec(IMAGES, "BYTES", (-1,)),),
            outputs=(*student_specs(len(classes)), TensorSpec(EMBEDDINGS, "FP16", (-1, width))),
            serving=serving,
        )

    async def versions(self, model: ServedStudent, context: Context) -> Sequence[str]:
        """Return the numbers of the first thousand versions, oldest first."""
        asked = _student_name(model.name)
        student = await self._student(asked.resource, "name")
        wanted = page(_PAGE, "", "versions", asked.resource)
        rows, _ = await asyncio.to_thread(students.versions_page, self._store, student, wanted)
        return [str(row.number) for row in rows]

    async def infer(self, model: ServedStudent, call: InferCall, context: Context) -> Answer:
        """Embed the images of a call, then predict and explain them."""
        assert model.serving is not None
        if label := call.text(LABEL):
            model.serving.file.class_index(label)
        items = await read_images(call, self._limits)
        found, spent = await self._calls.regions(model.serving, items)
        for at, one in enumerate(found):
            if isinstance(one, status_pb2.Status):
                raise failed(at, from_status(one))
        outputs, also_spent = await self._outputs(model.serving, call, items, found)
        timings = together([spent, *also_spent])
        return Answer(model.version, len(items), outputs, model.classes, timings)

    async def is_ready(self, name: str, version: str, context: Context) -> bool:
        """Return True for every version there is: students are small and load with the call."""
        await self._serving(_student_name(name).resource, version, "promoted")
        return True

    async def listed(self, project: str, context: Context) -> Sequence[Listed]:
        """Return the project's students with their promoted versions."""
        found: list[Listed] = []
        token = ""
        while True:
            wanted = page(_PAGE, token, "students", project)
            rows, token = await asyncio.to_thread(students.list_page, self._store, project, wanted)
            found += [
                Listed(ModelName(project, STUDENTS, row.student_id).short, str(row.promoted))
                for row in rows
            ]
            if not token:
                return found

    async def load(self, name: str, context: Context) -> None:
        """Read the promoted version. Raises NotFound."""
        await self.is_ready(name, "", context)

    async def unload(self, name: str, context: Context) -> None:
        """Not there: a student is a few numbers."""
        raise Unsupported("students are not put out of memory one by one")

    async def _outputs(
        self,
        serving: Serving,
        call: InferCall,
        items: Sequence[items_pb2.ImageInput],
        found: Sequence[Outcome],
    ) -> tuple[list[Output], list[items_pb2.Timings]]:
        """The outputs, and what the calls for them took."""
        calls, top = self._calls, top_of(call)
        rows = [one.embeddings[0] for one in found if isinstance(one, Regions)]
        outputs = [Output.numbers(EMBEDDINGS, np.stack(rows))]
        predictions, predicting = await calls.ask_predict(serving, items, found)
        spent = [predicting]
        outputs += prediction_outputs(predictions_of(predictions, failed))
        if asks_contributions(call):
            results, explaining = await calls.ask_explain(
                serving, items, found, call.text(LABEL), top
            )
            spent.append(explaining)
            outputs += contribution_outputs(explanations_of(results, failed), top)
        return outputs, spent


def _student_name(name: str) -> ModelName:
    asked = parse_model_name(name)
    if asked.collection != STUDENTS:
        raise NotFound(f"{asked.short} is not a student", resource=asked.resource)
    return asked
