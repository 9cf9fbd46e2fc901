"""Channels that are opened anew when their certificates change.

gRPC's own hold those that they were opened with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from services.common.tls import Certificates, Pems, TlsFiles


class _Method:
    """A method of a channel that may be replaced between two calls."""

    def __init__(self, channel: _Reloading, kind: str, args: Any, kwargs: Any) -> None:
        self._channel, self._kind, self._args, self._kwargs = channel, kind, args, kwargs
        self._made: tuple[Any, Callable[..., Any] | None] = None, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self._channel.current()
        if self._made[0] is not channel:
            self._made = channel, getattr(channel, self._kind)(*self._args, **self._kwargs)
        assert self._made[1] is not None
        return self._made[1](*args, **kwargs)


class _Reloading:
    """Opens a channel, and another one when the files have changed; calls in flight end on the
    channel they began on."""

    def __init__(self, files: TlsFiles, open_it: Callable[[Pems], Any]) -> None:
        self._certificates, self._open = Certificates(files), open_it
        self._pems = self._certificates.now()
        self._channels = [open_it(self._pems)]

    def current(self) -> Any:
        """Return the channel that calls begin on now."""
        pems = self._certificates.now()
        if pems is not self._pems:
            # The old one closes with the new: a stream on it may run for hours.
            self._pems = pems
            self._channels.append(self._open(pems))
        return self._channels[-1]

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_stream", args, kwargs)


class BlockingChannel(_Reloading):
    """What a blocking stub needs of a channel."""

    def close(self) -> None:
        """Close all channels."""
        for channel in self._channels:
            channel.close()


class ReloadingChannel(_Reloading, grpc.aio.Channel):
    """An asynchronous channel."""

    async def close(self, grace: float | None = None) -> None:
        for channel in self._channels:
            await channel.close(grace)

    async def __aenter__(self) -> ReloadingChannel:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state: grpc.ChannelConnectivity = self.current().get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: Any) -> None:
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel_ready()
