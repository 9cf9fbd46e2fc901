"""The figures of the services behind the gateway: every process that their addresses lead to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace

import grpc.aio
from stillhouse.common.v1 import info_pb2, info_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2_grpc

from services.common.channels import call, open_channel
from services.common.errors import PeerUnavailable, StillhouseError
from services.common.tls import TlsFiles
from services.gateway.settings import GatewaySettings

_ASK_S = 2.0


class Instances:
    """Asks for figures. A service behind a name is asked at each of its addresses, because a call
    to the name itself is answered by one process alone."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._targets = settings.addresses
        self._tls = settings.peer_tls
        self._max_message_bytes = settings.max_message_bytes
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def stats(self) -> list[info_pb2.InstanceStats]:
        """Return the figures of every process; of one that does not answer, why."""
        found = await asyncio.gather(*(self._service(*one) for one in self._targets.items()))
        return [one for some in found for one in some]

    async def teachers(self) -> list[teacher_pb2_grpc.TeacherServiceStub]:
        """Return a stub of every teacher process. Raises PeerUnavailable for an unknown name."""
        addresses = await resolve(self._targets["teacher"])
        channels = [self._channel("teacher", address) for address in addresses]
        return [teacher_pb2_grpc.TeacherServiceStub(channel) for channel in channels]

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(one.close(grace=None) for one in self._channels.values()))

    async def _service(self, service: str, target: str) -> Sequence[info_pb2.InstanceStats]:
        try:
            addresses = await resolve(target)
        except PeerUnavailable as error:
            return [_away(service, target, error)]
        found = await asyncio.gather(*(self._ask(service, address) for address in addresses))
        return _distinct(found)

    async def _ask(self, service: str, address: str) -> info_pb2.InstanceStats:
        stub = info_pb2_grpc.InfoServiceStub(self._channel(service, address))
        try:
            reply = await call(stub.GetStats, info_pb2.GetStatsRequest(), timeout_s=_ASK_S)
        except StillhouseError as error:
            return _away(service, address, error)
        found = info_pb2.InstanceStats()
        found.CopyFrom(reply.instances[0])
        found.address = address
        return found

    def _channel(self, service: str, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(
                address,
                max_message_bytes=self._max_message_bytes,
                tls=self._tls_of(service),
                service=service,
            )
        return self._channels[address]

    def _tls_of(self, service: str) -> TlsFiles | None:
        """A certificate holds the name of the target, not the addresses that the name leads to."""
        if self._tls is None:
            return None
        target = self._targets[service]
        host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
        name = self._tls.name_of(service, target) or host
        return replace(self._tls, names={service: name})


async def resolve(target: str) -> list[str]:
    """Return the addresses that a target stands for: `host:port`, `dns:///name:port` and lists with
    commas; any other form is its own. Raises PeerUnavailable for an unknown name."""
    scheme, _, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return rest.split(",")
    if "," in target:
        return [part.strip() for part in target.split(",")]
    if "://" in target and scheme != "dns" or scheme in ("unix", "xds"):
        return [target]
    host, _, port = target.rpartition("/")[2].rpartition(":")
    try:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PeerUnavailable(f"{target}: {error.strerror}") from None
    addresses = {str(info[4][0]) for info in infos}
    return sorted(f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in addresses)


def _distinct(found: Sequence[info_pb2.InstanceStats]) -> list[info_pb2.InstanceStats]:
    """Return every process once: `localhost` is two addresses, of which a service may have one."""
    processes = {one.instance: one for one in reversed(found) if one.instance}
    silent = [one for one in found if not one.instance]
    loopback = all(one.address.startswith(("127.", "[::1]")) for one in found)
    return [*reversed(processes.values()), *([] if processes and loopback else silent)]


def _away(service: str, address: str, error: StillhouseError) -> info_pb2.InstanceStats:
    return info_pb2.InstanceStats(service=service, address=address, error=error.to_status())
