"""Models in memory within a budget of bytes: loaded when first asked for, put away when others need
the room and nobody uses them.

Knows nothing of what a model is. A model may stand on another one (a head on its trunk), which then
stays as long as it does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from services.common import logs
from services.common.errors import Overloaded, Precondition
from services.common.shared_work import SharedWork

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")
_log = logs.get(__name__)


@dataclass(frozen=True)
class Loaded(Generic[M]):
    """What a load gives: the model, its own bytes, and the model it stands on, which the load has
    used."""

    model: M
    size_bytes: int
    under: M | None = None


@dataclass(eq=False)
class Resident(Generic[K, M]):
    """A model in memory."""

    key: K
    model: M
    size_bytes: int
    under: Resident[K, M] | None
    """The one that it stands on."""
    pinned: bool
    """Never put away to make room."""
    users: int = 0
    """Calls that compute with it now."""
    loaded_s: float = field(default_factory=time.time)
    """When it was loaded, in seconds since 1970."""
    used_s: float = field(default_factory=time.time)
    """When it was last asked for."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)


Load = Callable[[], Awaitable[Loaded[M]]]


@dataclass(frozen=True)
class LoadedModel:
    """What is told of a model in memory."""

    project: str
    """Empty for one that all projects can use."""
    model_id: str
    digest: str
    size_bytes: int
    pinned: bool
    users: int
    """Calls that compute with it now."""
    loaded_s: float
    used_s: float
    """When it was loaded and last asked for, in seconds since 1970."""

    @classmethod
    def of(
        cls, one: Resident[Any, Any], project: str, model_id: str, *, digest: str
    ) -> LoadedModel:
        """Describe one of a service's models."""
        return cls(
            project,
            model_id,
            digest,
            one.size_bytes,
            one.pinned,
            one.users,
            one.loaded_s,
            one.used_s,
        )


class Residents(Generic[K, M]):
    """The models of a service. Use from one event loop.

    `put_away` closes a model that has left; by then nobody computes with it.
    """

    def __init__(
        self,
        budget_bytes: int,
        put_away: Callable[[M], Awaitable[None]],
        *,
        pinned: Callable[[K], bool] = lambda key: False,
    ) -> None:
        """`budget_bytes` of 0 sets no limit; `pinned` says which keys never make room."""
        self._budget, self._put_away, self._pinned = budget_bytes, put_away, pinned
        self._here: OrderedDict[Hashable, Resident[K, M]] = OrderedDict()
        self._loads: SharedWork[K] = SharedWork()
        self._wanted: Counter[K] = Counter()

    def __iter__(self) -> Iterator[Resident[K, M]]:
        """Iterate over the models in memory, least recently used first."""
        return iter(list(self._here.values()))

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all models in memory."""
        return sum(one.size_bytes for one in self._here.values())

    def find(self, key: K) -> M | None:
        """Return a model only where it is in memory; does not count as use."""
        one = self._here.get(key)
        return None if one is None else one.model

    @asynccontextmanager
    async def use(self, key: K, load: Load[M]) -> AsyncIterator[M]:
        """A model that stays in memory while the block runs.

        Callers share a load, which goes on where they leave. Raises Overloaded where models in use
        leave it no room, Precondition where it could never have any, and whatever `load` raises.
        """
        one = await self._hold(key, load)
        try:
            yield one.model
        finally:
            self._let_go(one)

    async def unload(self, key: K) -> bool:
        """Put a model away with all that stand on it, once calls in flight are done.

        Calls from now on load it again. Returns False where it was not in memory. Raises
        Precondition for one that is pinned.
        """
        one = self._here.get(key)
        if one is None:
            return False
        leaving = [*self._standing_on(one), one]
        if any(part.pinned for part in leaving):
            raise Precondition("the model that is loaded at start stays; readiness follows it")
        for part in leaving:
            del self._here[part.key]
        for part in leaving:
            await part.idle.wait()
            await self._close(part)
        return True

    async def close(self) -> None:
        """Close every model; give up loads in progress."""
        await self._loads.close()
        leaving = list(self._here.values())
        self._here.clear()
        await asyncio.gather(*(self._put_away(one.model) for one in leaving))

    async def _hold(self, key: K, load: Load[M]) -> Resident[K, M]:
        self._wanted[key] += 1
        try:
            # One that is here but still makes room may have to leave again.
            while key in self._loads or key not in self._here:
                await self._loads.done(key, lambda: self._load(key, load))
            one = self._here[key]
            self._take(one)
            return one
        finally:
            self._wanted[key] -= 1
            if not self._wanted[key]:
                del self._wanted[key]

    async def _load(self, key: K, load: Load[M]) -> None:
        """Load a model and make room for it."""
        found = await load()
        while found.under is not None and self._holding(found.under) is None:
            found = await load()  # what it stands on was put away in the meantime
        under = None if found.under is None else self._holding(found.under)
        one = Resident(key, found.model, found.size_bytes, under, self._pinned(key))
        self._here[key] = one
        self._take(one)
        try:
            await self._make_room(one)
        except BaseException:
            self._let_go(one)
            if self._here.pop(key, None) is not None:
                await self._close(one)
            raise
        self._let_go(one)
        _log.info("loaded", model=str(key), mib=one.size_bytes >> 20, all_mib=self.size_bytes >> 20)

    def _holding(self, model: M) -> Resident[K, M] | None:
        """Return where this very model is; one of the same name may have come after it."""
        return next((one for one in self._here.values() if one.model is model), None)

    async def _make_room(self, newcomer: Resident[K, M]) -> None:
        while self._budget and self.size_bytes > self._budget:
            leaving = next((one for one in self._here.values() if self._may_leave(one)), None)
            if leaving is not None:
                del self._here[leaving.key]
                await self._close(leaving)
            elif newcomer.pinned:
                return
            else:
                raise self._no_room(newcomer)

    def _no_room(self, newcomer: Resident[K, M]) -> Precondition | Overloaded:
        needed = newcomer.size_bytes + sum(
            one.size_bytes for one in self._here.values() if self._is_kept(one)
        )
        says = f"{newcomer.key}: {newcomer.size_bytes:,} bytes do not fit the budget for models"
        if needed > self._budget:
            return Precondition(
                f"{says} of {self._budget:,} bytes; raise it (max_models_bytes)",
                differences={"max_models_bytes": f"{self._budget} instead of {needed}"},
            )
        return Overloaded(f"{says} while others are in use", retry_after_s=5.0)

    def _may_leave(self, one: Resident[K, M]) -> bool:
        standing = any(other.under is one for other in self._here.values())
        in_use = one.users or standing or self._wanted[one.key]
        return not (in_use or self._is_kept(one))

    def _is_kept(self, one: Resident[K, M]) -> bool:
        return one.pinned or any(part.pinned for part in self._standing_on(one))

    def _standing_on(self, one: Resident[K, M]) -> list[Resident[K, M]]:
        """Return all that stand on a model, directly or not, the topmost first."""
        found: list[Resident[K, M]] = []
        for other in list(self._here.values()):
            if other.under is one:
                found += [*self._standing_on(other), other]
        return found

    def _take(self, one: Resident[K, M]) -> None:
        for part in _with_those_under(one):
            part.users += 1
            part.used_s = time.time()
            part.idle.clear()
            if part.key in self._here:
                self._here.move_to_end(part.key)

    def _let_go(self, one: Resident[K, M]) -> None:
        for part in _with_those_under(one):
            part.users -= 1
            if not part.users:
                part.idle.set()

    async def _close(self, one: Resident[K, M]) -> None:
        await self._put_away(one.model)
        _log.info("put away", model=str(one.key), mib=one.size_bytes >> 20)


def _with_those_under(one: Resident[K, M]) -> Iterator[Resident[K, M]]:
    part: Resident[K, M] | None = one
    while part is not None:
        yield part
        part = part.under
