"""Writes docs/settings.md: every setting of every service, from the settings classes themselves.

`python scripts/settings_table.py` writes it; with `--check` it only says whether it is current.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from services.common.settings import ServiceSettings  # noqa: E402
from services.concepts.settings import ConceptsSettings  # noqa: E402
from services.gateway.settings import GatewaySettings  # noqa: E402
from services.student.settings import StudentSettings  # noqa: E402
from services.teacher.settings import TeacherSettings  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
SERVICES: dict[str, type[ServiceSettings]] = {
    "teacher": TeacherSettings,
    "concepts": ConceptsSettings,
    "student": StudentSettings,
    "gateway": GatewaySettings,
}
_KINDS = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_INTRO = """\
# Settings

Every service reads its settings from the environment, once, when it starts. The name of a variable
is the service's prefix and the setting in capitals: `batch_wait_ms` of the teacher is
`TEACHER_BATCH_WAIT_MS`. Prefixes are `TEACHER_`, `CONCEPTS_`, `STUDENT_` and `GATEWAY_`. Lists are
JSON (`GATEWAY_ALLOWED_HOSTS='["workbench.example.org"]'`). A value that does not fit stops the
start with a message; a misspelt name is not noticed, so look at the `listening` line of the log,
which shows what is in force.

A cell under a service is the default there; an empty one means that the service has no such
setting. This page is generated from the code by `python scripts/settings_table.py`.
"""


def docs_of(settings: type[ServiceSettings]) -> dict[str, str]:
    """Return the docstring of every field, from the class itself or the nearest base."""
    found: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        if issubclass(owner, ServiceSettings):
            found |= _own_docs(owner)
    return found


def _own_docs(owner: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return docs


def default_of(field: FieldInfo) -> str:
    """Return a default as it stands in the table."""
    if field.default_factory is dict:
        return "`{}`"
    if field.default_factory is not None:
        return "cores"
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value in ("", ()):
        return "empty"
    return f"`{value}`".replace(str(Path.home()), "~")


def kind_of(field: FieldInfo) -> str:
    """Return what a value may be: its type, and its limits."""
    annotated = get_args(field.annotation) or [field.annotation]
    kinds = [one for one in annotated if one is not NoneType]
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(f"`{one}`" for one in kinds if one)
    if get_origin(field.annotation) is dict:
        return "JSON object"
    if get_origin(field.annotation) is tuple:
        return "JSON list"
    if kinds == [SecretStr]:
        return "text, secret"
    return ", ".join([_KINDS[kinds[0]], *_limits(field)])


def _limits(field: FieldInfo) -> list[str]:
    said = []
    for one in field.metadata:
        match one:
            case Ge():
                said.append(f"{one.ge} or more")
            case Gt():
                said.append(f"above {one.gt}")
            case Le():
                said.append(f"at most {one.le}")
            case Lt():
                said.append(f"below {one.lt}")
    return said


def rows() -> list[tuple[str, str, dict[str, str], str]]:
    """Return (setting, kind, default by service, meaning), shared settings first."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for service, settings in SERVICES.items():
        docs = docs_of(settings)
        for name, field in settings.model_fields.items():
            key = (name, kind_of(field), docs[name])
            found.setdefault(key, {})[service] = default_of(field)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(name, kind, defaults, doc) for (name, kind, doc), defaults in ordered]


def render() -> str:
    """Return the page."""
    names = list(SERVICES)
    lines = [_INTRO, f"| setting | {' | '.join(names)} | value | meaning |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for name, kind, defaults, doc in rows():
        cells = [f"`{name}`", *(defaults.get(service, "") for service in names), kind, doc]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or with `--check` return 1 where it is not current."""
    page = render()
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page:
        return 0
    print("docs/settings.md is not current: python scripts/settings_table.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
