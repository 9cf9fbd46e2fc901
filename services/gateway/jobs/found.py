"""Work that is found where it was done before: JSON in a blob, under a ref named by its inputs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from services.common.errors import NotFound
from services.gateway.jobs.job import Tools
from services.gateway.keys import stage_ref

Inputs = Mapping[str, str | int | bool | Sequence[str]]


async def once(
    tools: Tools,
    project: str,
    stage: str,
    inputs: Inputs,
    work: Callable[[], Awaitable[Any]],
) -> tuple[Any, bool]:
    """Return (the JSON value that `work` makes of `inputs`, whether it was there already).

    A retry, a second job and a job after a crash find it.
    """
    ref = stage_ref(stage, inputs)
    found = await asyncio.to_thread(_find, tools, project, ref)
    if found is not None:
        return found["value"], True
    value = await work()
    await asyncio.to_thread(_keep, tools, project, ref, value)
    return value, False


def _find(tools: Tools, project: str, ref: str) -> dict[str, Any] | None:
    try:
        digest = tools.blobs.get_ref(project, ref).decode()
        found = json.loads(tools.blobs.get(project, digest))
    except (NotFound, ValueError):
        return None
    return found if isinstance(found, dict) and "value" in found else None


def _keep(tools: Tools, project: str, ref: str, value: Any) -> None:
    text = json.dumps({"value": value}, sort_keys=True, ensure_ascii=False)
    tools.blobs.put_ref(project, ref, tools.blobs.put(project, text.encode()).encode())
