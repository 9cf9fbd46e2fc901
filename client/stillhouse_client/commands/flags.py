"""Flags that several commands share, as a dataclass each."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Make the fields of a command's dataclass parameters flags of the command.

    A parameter whose type is a dataclass, its fields annotated as typer wants them, is filled from
    the flags; all other parameters stay as they are. The first line of the dataclass's docstring
    is the heading of its flags in the command's help.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        p.name: p.annotation
        for p in signature.parameters.values()
        if dataclasses.is_dataclass(p.annotation)
    }
    flags = [flag for p in signature.parameters.values() for flag in _flags(p)]

    @functools.wraps(command)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in dataclasses.fields(group)})
        command(**given)

    described: Any = call
    described.__signature__ = signature.replace(parameters=flags)
    described.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return call


def _flags(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    kind, group = inspect.Parameter.KEYWORD_ONLY, parameter.annotation
    if not dataclasses.is_dataclass(group):
        return [parameter.replace(kind=kind)]
    hints = get_type_hints(group, include_extras=True)
    heading = (group.__doc__ or "").partition("\n")[0].rstrip(".")
    return [
        inspect.Parameter(
            field.name,
            kind,
            default=field.default,
            annotation=_described(hints[field.name], field.default, heading),
        )
        for field in dataclasses.fields(group)
    ]


def _described(annotation: Any, default: Any, heading: str) -> Any:
    """Return the annotation under a heading; what it was made of is shared with other commands."""
    plain, *shared = get_args(annotation)
    (info,) = (copy.copy(one) for one in shared)
    info.rich_help_panel = heading
    if default == 0 and not isinstance(default, bool):
        info.show_default = False  # 0 means the default that the help names.
    return Annotated[plain, info]
