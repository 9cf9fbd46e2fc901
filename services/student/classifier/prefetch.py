"""Prepares numbered batches in threads while earlier ones are worked on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
THREADS = 2
AHEAD = 4
"""Batches that are ready or being made; more would cost memory and gain nothing."""


class Prefetch(Generic[T]):
    """Results of `make(number)` for rising numbers below `stop`. A context manager."""

    def __init__(
        self, make: Callable[[int], T], stop: int, *, threads: int = THREADS, ahead: int = AHEAD
    ) -> None:
        self._make, self._stop, self._ahead = make, stop, ahead
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._coming: dict[int, Future[T]] = {}

    def take(self, number: int) -> T:
        """The result for a number, as soon as it is ready; raises what `make` raised.

        Those that follow are begun. A number that was not expected (a resumed training's first)
        starts a new row.
        """
        if number not in self._coming:
            self._drop()
        for at in range(number, min(number + self._ahead, self._stop)):
            if at not in self._coming:
                self._coming[at] = self._executor.submit(self._make, at)
        return self._coming.pop(number).result()

    def close(self) -> None:
        """Stop; what is being made is dropped."""
        self._drop()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _drop(self) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
