"""An answer's text as its tokens come: decoded piece by piece, ended by stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.torch_common.language.packing import Encoder

_UNFINISHED = "\ufffd"


@dataclass
class AnswerText:
    """Text of one answer. `settled` is what can no longer become part of a stop text."""

    encoder: Encoder
    stops: Sequence[str] = ()
    ids: list[int] = field(default_factory=list)
    text: str = ""
    stopped: bool = False
    _window: int = 0
    _read: int = 0
    _given: int = 0

    def add(self, token: int) -> None:
        """Take one more token; sets `stopped` where a stop text is complete."""
        self.ids.append(token)
        before = self.encoder.decode(self.ids[self._window : self._read])
        after = self.encoder.decode(self.ids[self._window :])
        # A character may be made of several tokens: wait for the rest of it.
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            self._append(after[len(before) :])
            self._window, self._read = self._read, len(self.ids)

    def finish(self) -> None:
        """No token will come any more: take what was waited for."""
        if not self.stopped:
            before = self.encoder.decode(self.ids[self._window : self._read])
            self._append(self.encoder.decode(self.ids[self._window :])[len(before) :])
            self._read = self._window = len(self.ids)

    def take(self, *, last: bool = False) -> str:
        """Text since the last call that is settled, or all where `last`."""
        end = len(self.text) if last or self.stopped else len(self.text) - self._held()
        piece, self._given = self.text[self._given : end], max(self._given, end)
        return piece

    def _append(self, piece: str) -> None:
        longest = max(map(len, self.stops), default=0)
        start = max(0, len(self.text) - longest)
        self.text += piece
        ends = [at for stop in self.stops if (at := self.text.find(stop, start)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True

    def _held(self) -> int:
        """Characters at the end that a stop text may begin with."""
        longest = min(max(map(len, self.stops), default=1) - 1, len(self.text))
        return next(
            (
                n
                for n in range(longest, 0, -1)
                if any(s.startswith(self.text[-n:]) for s in self.stops)
            ),
            0,
        )
