"""Fixed answers of the calls on versions of students and on labels, for the fake gateway."""

from __future__ import annotations

from typing import Any

from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as datasets
from stillhouse.gateway.v1 import students_pb2 as students
from stillhouse.student.v1 import student_pb2

from services.common.errors import HeadMoved, InvalidInput

FRUIT = "projects/default/students/fruit"


class History:
    """Versions 1 to 3: 2 and 3 were tuned from 1, which is the head."""

    world: Any

    async def ListStudentVersions(self, request: Any, context: Any) -> Any:
        first = f"{FRUIT}/versions/1"
        found = [students.StudentVersion(name=first)]
        found += [students.StudentVersion(name=f"{FRUIT}/versions/{n}", parent=first) for n in "23"]
        return students.ListStudentVersionsResponse(versions=found)

    async def SetStudentHead(self, request: Any, context: Any) -> Any:
        self.world.calls.append(request)
        version = students.StudentVersion(name=request.version, display_name="more peel")
        return students.SetStudentHeadResponse(version=version)

    async def RenameStudentVersion(self, request: Any, context: Any) -> Any:
        self.world.calls.append(request)
        version = students.StudentVersion(name=request.name, display_name=request.display_name)
        return students.RenameStudentVersionResponse(version=version)

    async def EvaluateStudentVersion(self, request: Any, context: Any) -> Any:
        self.world.calls.append(request)
        found = student_pb2.Estimate(value=0.912, low=0.884, high=0.937)
        return students.EvaluateStudentVersionResponse(
            metrics={"recall/Apple": found, "fidelity": found},
            undefined={"precision/Pink-Lady": "the class is never predicted here"},
            item_count=24,
            nec=3.5,
        )

    async def InspectStudentVersion(self, request: Any, context: Any) -> Any:
        blob: items_pb2.BlobRef = self.world.put(b"arrays")
        data = student_pb2.InspectResponse(arrays=blob)
        return students.InspectStudentVersionResponse(data=data, version=request.name)


def check_head(request: students.TuneStudentRequest) -> None:
    """Raise HeadMoved where the caller expects another head than version 1."""
    if request.expected_head not in ("", f"{FRUIT}/versions/1"):
        raise HeadMoved("fruit was changed meanwhile", head_version=f"{FRUIT}/versions/1")


def presences(words: Any) -> list[students.ConceptPresence]:
    """Return a presence of every word; the student has those of two words alone."""
    classes = [
        students.ClassPresence(label="Apple", mean_presence=0.1, auc=0.4),
        students.ClassPresence(label="Pink-Lady", mean_presence=0.3, auc=0.9),
    ]
    return [
        students.ConceptPresence(concept=word, known=" " in word, classes=classes) for word in words
    ]


def corrected(request: datasets.CorrectLabelsRequest) -> datasets.Dataset:
    """Return the corrected dataset. Raises InvalidInput for an item `none.jpg`."""
    for at, one in enumerate(request.corrections):
        if one.item_id == "none.jpg":
            field = f"corrections[{at}].item_id"
            raise InvalidInput(f"{field}: the dataset has no item 'none.jpg'", field=field)
    name = request.dataset.rsplit("/", 1)[0] + f"/{request.dataset_id}"
    return datasets.Dataset(
        name=name, state=datasets.DATASET_STATE_READY, corrected_from=request.dataset
    )
