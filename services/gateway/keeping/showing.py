"""What a person sees while a store is looked after."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY_S = 0.1


class Bar:
    """A progress bar on standard error; Ctrl-C ends the work and is remembered."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._progress = Progress(
            *columns, console=console, transient=True, disable=quiet or not console.is_terminal
        )
        self._task = self._progress.add_task(title, total=None)
        self._told_s = 0.0
        self.interrupted = False

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def expect(self, total: int) -> None:
        """Say how many steps there will be."""
        self._progress.update(self._task, total=total)

    def at(self, done: int) -> None:
        """Show how many steps are done."""
        if time.monotonic() - self._told_s > _EVERY_S:
            self._told_s = time.monotonic()
            self._progress.update(self._task, completed=done)
