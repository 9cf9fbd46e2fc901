"""Names of models in the Open Inference Protocol.

The protocol has one string. Ours is `model`, `project/model`, `students/student` or
`project/students/student`, without a project for the default one; `projects/p/models/m` and
`projects/p/students/s`, the names of the rest of the contract, are understood as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.errors import InvalidInput
from services.common.names import DEFAULT_PROJECT, check_id, join

MODELS, STUDENTS = "models", "students"
_FORMS = "MODEL, PROJECT/MODEL, students/STUDENT or PROJECT/students/STUDENT"


@dataclass(frozen=True)
class ModelName:
    """A model or student of a project."""

    project: str
    collection: str
    """`models` or `students`."""
    id: str

    @property
    def short(self) -> str:
        """The name as lists and statistics give it."""
        if self.project == STUDENTS:  # the short forms would mean a student
            return self.resource
        own = self.id if self.collection == MODELS else f"{STUDENTS}/{self.id}"
        return own if self.project == DEFAULT_PROJECT else f"{self.project}/{own}"

    @property
    def resource(self) -> str:
        """The name in the rest of the contract: `projects/p/models/m`."""
        return join(self.project, self.collection, self.id)


def parse_model_name(name: str, *, field: str = "model_name") -> ModelName:
    """Return what a name means. Raises InvalidInput for any other form."""
    match name.split("/"):
        case ["projects", project, (("models" | "students") as collection), one]:
            found = ModelName(project, collection, one)
        case [project, "students", one]:
            found = ModelName(project, STUDENTS, one)
        case ["students", one]:
            found = ModelName(DEFAULT_PROJECT, STUDENTS, one)
        case [project, one]:
            found = ModelName(project, MODELS, one)
        case [one]:
            found = ModelName(DEFAULT_PROJECT, MODELS, one)
        case _:
            raise InvalidInput(f"{field}: {name[:120]!r} is none of {_FORMS}", field=field)
    check_id(found.project, field=field)
    check_id(found.id, field=field)
    return found
