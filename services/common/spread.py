"""A channel to a list of instances, which take the calls of each method in turn.

gRPC's own `round_robin` begins at a random instance again whenever the state of any changes, which
is every two seconds while one of the list is away: a job's few large calls then fall as dice do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio


class _Method:
    """A method whose calls go to the instances in turn, those that are not ready left out."""

    def __init__(self, spread: SpreadChannel, make: Callable[[grpc.aio.Channel], Any]) -> None:
        self._spread, self._make = spread, make
        self._made: dict[int, Any] = {}
        self._turn = -1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        at = self._spread.ready_after(self._turn)
        if at is None:
            return self._call(-1, self._spread.whole, *args, **kwargs)
        self._turn = at
        return self._call(at, self._spread.each[at], *args, **kwargs)

    def _call(self, at: int, channel: grpc.aio.Channel, *args: Any, **kwargs: Any) -> Any:
        if at not in self._made:
            self._made[at] = self._make(channel)
        return self._made[at](*args, **kwargs)


class SpreadChannel(grpc.aio.Channel):
    """`each` are channels to one instance, `whole` one to all of them: what begins while none is
    ready waits there for the first that is, or learns that all are away."""

    def __init__(self, whole: grpc.aio.Channel, each: Iterable[grpc.aio.Channel]) -> None:
        self.whole, self.each = whole, tuple(each)
        for channel in self.each:
            channel.get_state(try_to_connect=True)

    def ready_after(self, turn: int) -> int | None:
        """Return the next instance after one that is ready; None where none is."""
        ready = grpc.ChannelConnectivity.READY
        count = len(self.each)
        for at in ((turn + step) % count for step in range(1, count + 1)):
            if self.each[at].get_state(try_to_connect=True) is ready:
                return at
        return None

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        for channel in (self.whole, *self.each):
            await channel.close(grace)

    async def __aenter__(self) -> SpreadChannel:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.whole.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: Any) -> None:
        await self.whole.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.whole.channel_ready()
