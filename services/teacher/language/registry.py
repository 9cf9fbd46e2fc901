"""Language models by name: loaded when first asked for, adapters on shared bases, the least
recently used put away.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from services.common import logs, metrics
from services.common.device import Device
from services.common.errors import Precondition
from services.common.fairness import ONLINE
from services.common.model_records import LanguageModelRecord
from services.common.resident import LoadedModel
from services.common.shared_work import SharedWork
from services.common.tensors import Array
from services.teacher.language.batching import TokenBatcher
from services.teacher.language.heads import Head
from services.teacher.language.scoring import ScoreInput, score
from services.teacher.settings import TeacherSettings
from services.torch_common.language.files import ModelFiles, ModelSource
from services.torch_common.language.loading import (
    LoadedLanguageModel,
    drop_adapter,
    load_adapter,
    load_folder,
)
from services.torch_common.threads import set_threads

R = TypeVar("R")
_log = logs.get(__name__)
Key = tuple[str, str, str]
"""(project, model id, digest of its record and of what it stands on); project and digest are empty
for the catalogue's."""


@dataclass
class ServedLanguageModel:
    """A loaded model with its queue, and how many calls are using it now."""

    key: Key
    loaded: LoadedLanguageModel
    head: Head
    scores: TokenBatcher[ScoreInput, Array]
    base: ServedLanguageModel | None = None
    users: int = field(default=0, compare=False)
    loaded_s: float = field(default_factory=time.time, compare=False)
    used_s: float = field(default_factory=time.time, compare=False)
    """When it was loaded and last asked for, in seconds since 1970."""


class LanguageRegistry:
    """Loads language models off the event loop, one at a time.

    A model whose record has changed is another model: the record is read for every call.
    """

    def __init__(self, settings: TeacherSettings, source: ModelSource, device: Device) -> None:
        self._settings, self.source, self._device = settings, source, device
        self._served: OrderedDict[Key, ServedLanguageModel] = OrderedDict()
        self._loads: SharedWork[Key] = SharedWork()
        self._changing = asyncio.Lock()
        """Held by whoever loads a model or puts one away."""

    @asynccontextmanager
    async def use(self, project: str, model_id: str) -> AsyncIterator[ServedLanguageModel]:
        """A model that stays loaded while the block runs.

        Callers share a load, which goes on where they leave. Raises NotFound for an unknown model
        or base, Precondition where an adapter does not fit its base, InvalidInput for damaged
        files.
        """
        key = await asyncio.to_thread(self._key, project, model_id)
        while (served := self._served.get(key)) is None:
            await self._loads.done(key, lambda: self._load_in_turn(key))
        self._touch(served)
        served.users += 1
        try:
            yield served
        finally:
            served.users -= 1

    async def unload(self, project: str, model_id: str) -> bool:
        """Put a model away, with the adapters on it. Returns whether it was in memory.

        Raises Precondition while one of them is in use.
        """
        key = await asyncio.to_thread(self._key, project, model_id)
        async with self._changing:
            served = self._served.get(key)
            if served is None:
                return False
            on_it = [one for one in self._served.values() if one.base is served]
            if served.users or any(one.users for one in on_it):
                raise Precondition(f"{model_id} is in use; try again once its calls are done")
            if served.base is not None:
                await self._drop(served)
            else:
                self._put_away([*on_it, served])
        return True

    async def forget(self, project: str, *, dry_run: bool = False) -> int:
        """Put away a project's models and return how many there were. Raises Precondition while
        one is in use."""
        async with self._changing:
            its = [one for one in self._served.values() if one.key[0] == project]
            if not dry_run and any(one.users for one in its if one.base is not None):
                raise Precondition(f"a model of project {project} is in use; its calls end first")
            for one in () if dry_run else sorted(its, key=lambda one: one.base is None):
                if one.users:
                    raise Precondition(f"a model of project {project} is in use")
                if one.base is not None:
                    await self._drop(one)
                else:
                    self._put_away([one])
        return len(its)

    def loaded_models(self) -> list[LoadedModel]:
        """Return what is in memory, of all projects, least recently used first."""
        return [
            LoadedModel(
                project=one.key[0],
                model_id=one.key[1],
                digest=one.loaded.digest,
                size_bytes=one.loaded.size_bytes,
                pinned=one.key[1] == self._settings.preload,
                users=one.users,
                loaded_s=one.loaded_s,
                used_s=one.used_s,
            )
            for one in self._served.values()
        ]

    def _key(self, project: str, model_id: str) -> Key:
        if model_id in self.source.catalogue:
            return "", model_id, ""
        data = self.source.reference(project, model_id)
        record = LanguageModelRecord.from_bytes(data)
        under = repr(self._key(project, record.base)) if record.base else ""
        return project, model_id, hashlib.sha256(data + under.encode()).hexdigest()

    def _touch(self, served: ServedLanguageModel) -> None:
        for one in (served.base, served):
            if one is not None and one.key in self._served:
                self._served.move_to_end(one.key)
                one.used_s = time.time()

    async def _load_in_turn(self, key: Key) -> None:
        async with self._changing:
            if key not in self._served:  # as the base of an adapter, in between
                await self._load(key)

    async def _load(self, key: Key) -> ServedLanguageModel:
        project, model_id, _ = key
        files = await asyncio.to_thread(self.source.find, project or "default", model_id)
        if files.base:
            served = await self._load_adapter(key, files)
        else:
            await self._make_room()
            served = await self._load_whole(key, files)
        self._served[key] = served
        _log.info("loaded", model=model_id, base=files.base, digest=served.loaded.digest)
        await self._forget_older(key)
        return served

    async def _load_whole(self, key: Key, files: ModelFiles) -> ServedLanguageModel:
        loaded = await asyncio.to_thread(self._read, files)
        head = Head(loaded.model, loaded.vocab_size)
        await self._run(partial(head.check, loaded.model))
        return ServedLanguageModel(key, loaded, head, self._queue(loaded, head))

    def _read(self, files: ModelFiles) -> LoadedLanguageModel:
        settings = self._settings
        set_threads(settings.threads)
        return load_folder(files, device=settings.device, precision=settings.precision)

    async def _load_adapter(self, key: Key, files: ModelFiles) -> ServedLanguageModel:
        base_key = await asyncio.to_thread(self._key, key[0] or "default", files.base)
        base = self._served.get(base_key) or await self._load(base_key)
        if base.base is not None:
            raise Precondition(f"{files.model_id}: its base {files.base} is an adapter itself")
        self._touch(base)
        base.users += 1
        try:
            await self._drop_adapters(self._settings.max_adapters - 1)
            # In the models' own thread: no forward pass may run while the base's layers change.
            loaded = await self._run(partial(load_adapter, files, base.loaded))
        finally:
            base.users -= 1
        return ServedLanguageModel(key, loaded, base.head, self._queue(loaded, base.head), base)

    def _queue(self, loaded: LoadedLanguageModel, head: Head) -> TokenBatcher[ScoreInput, Array]:
        settings = self._settings
        return TokenBatcher(
            partial(score, loaded, head),
            self._device,
            name=loaded.model_id,
            size=lambda item: len(item.ids),
            budget=settings.max_batch_tokens,
            pass_tokens=settings.pass_tokens_in_force,
            wait_ms=settings.batch_wait_ms,
            max_batch_ms=settings.max_batch_ms,
            max_items=settings.max_queue_items,
            max_tokens=settings.max_queue_tokens,
        )

    async def _run(self, work: Callable[[], R]) -> R:
        return await self._device.run(work, flow=ONLINE)

    async def _make_room(self) -> None:
        """Put away whole models until there is room for one more; those in use stay, and so does
        the one that is loaded at start."""
        whole = [
            one
            for one in self._served.values()
            if one.base is None and one.key[1] != self._settings.preload
        ]
        extra = len(whole) - self._settings.max_language_models + 1
        for one in whole:
            on_it = [other for other in self._served.values() if other.base is one]
            if extra > 0 and not one.users and not any(other.users for other in on_it):
                self._put_away([*on_it, one])
                extra -= 1

    def _put_away(self, models: Sequence[ServedLanguageModel]) -> None:
        """Forget a whole model and the adapters on it."""
        for gone in models:
            del self._served[gone.key]
            self._note_gone(gone)

    async def _drop_adapters(self, keep: int) -> None:
        """Take adapters off their bases until `keep` are left; those in use stay."""
        adapters = [one for one in self._served.values() if one.base is not None]
        idle = [one for one in adapters if not one.users]
        for one in idle[: max(0, len(adapters) - keep)]:
            await self._drop(one)

    async def _forget_older(self, key: Key) -> None:
        """Put away what the same name stood for before."""
        for one in list(self._served.values()):
            for part in (one, one.base):
                old = part is not None and part.key[:2] == key[:2] and part.key != key
                if old and not one.users and one.key in self._served:
                    await self._drop(one)

    def _note_gone(self, one: ServedLanguageModel) -> None:
        name = one.loaded.model_id
        _log.info("put away", model=name)
        if all(other.loaded.model_id != name for other in self._served.values()):
            for series in (name, f"{name} targets", f"{name} answers"):
                metrics.forget_model(series)

    async def _drop(self, one: ServedLanguageModel) -> None:
        del self._served[one.key]
        twins = [
            other for other in self._served.values() if other.loaded.digest == one.loaded.digest
        ]
        if one.base is not None and not twins:
            await self._run(partial(drop_adapter, one.loaded))
        self._note_gone(one)
