"""The services the gateway calls: channels, stubs and deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import grpc.aio
from stillhouse.common.v1 import info_pb2, info_pb2_grpc
from stillhouse.concepts.v1 import concepts_pb2_grpc
from stillhouse.inference.v2 import open_inference_pb2_grpc
from stillhouse.student.v1 import student_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2_grpc

from services.common import callers
from services.common.channels import call, open_channel, retrying
from services.common.errors import StillhouseError
from services.common.parts import in_parts
from services.gateway.settings import GatewaySettings

R = TypeVar("R")
T = TypeVar("T")
Peer = Literal["teacher", "concepts", "student"]
_PLACES: dict[Peer, int] = {"teacher": 0, "concepts": 1, "student": 2}
_LIMITS_S = 60.0
"""How long a service's limits are taken as known."""


@dataclass(frozen=True)
class Peers:
    """Stubs of the three services, and how long to wait for them."""

    teacher: teacher_pb2_grpc.TeacherServiceStub
    concepts: concepts_pb2_grpc.ConceptsServiceStub
    student: student_pb2_grpc.StudentServiceStub
    inference: open_inference_pb2_grpc.GRPCInferenceServiceStub
    """The teacher's models in the Open Inference Protocol."""
    channels: tuple[grpc.aio.Channel, ...]
    timeout_s: float
    shard_timeout_s: float
    give_up_s: float
    max_message_bytes: int
    known_limits: dict[Peer, tuple[float, info_pb2.Limits]] = field(default_factory=dict)
    """What services have said they accept, each until a time of `time.monotonic`."""

    @classmethod
    def connect(cls, settings: GatewaySettings) -> Peers:
        """Open the channels; a service that is away is waited for by the calls, not here."""
        teacher, concepts, student = (
            open_channel(
                address,
                max_message_bytes=settings.max_message_bytes,
                tls=settings.peer_tls,
                service=service,
            )
            for service, address in settings.addresses.items()
        )
        return cls(
            teacher=teacher_pb2_grpc.TeacherServiceStub(teacher),
            concepts=concepts_pb2_grpc.ConceptsServiceStub(concepts),
            student=student_pb2_grpc.StudentServiceStub(student),
            inference=open_inference_pb2_grpc.GRPCInferenceServiceStub(teacher),
            channels=(teacher, concepts, student),
            timeout_s=settings.peer_timeout_s,
            shard_timeout_s=settings.shard_timeout_s,
            give_up_s=settings.give_up_s,
            max_message_bytes=settings.max_message_bytes,
        )

    async def ask(
        self, method: Callable[..., Awaitable[R]], request: Any, *, timeout_s: float = 0.0
    ) -> R:
        """Call once; an online caller decides itself whether to try again. Raises
        StillhouseError."""
        return await call(method, request, timeout_s=timeout_s or self.timeout_s)

    async def parts(
        self, peer: Peer, items: Sequence[T], bytes_of: Callable[[T], int]
    ) -> list[list[T]]:
        """Return items in lists that a service takes in one call; `bytes_of` tells what an item
        takes in the request or in the answer, whichever is more."""
        until_s, limits = self.known_limits.get(peer, (0.0, info_pb2.Limits()))
        if until_s < time.monotonic():
            stub = info_pb2_grpc.InfoServiceStub(self.channels[_PLACES[peer]])
            try:
                limits = (await self.ask(stub.GetInfo, info_pb2.GetInfoRequest())).limits
                self.known_limits[peer] = (time.monotonic() + _LIMITS_S, limits)
            except StillhouseError:  # away: the call itself will say so, and is what is repeated
                pass
        return in_parts(items, bytes_of, limits)

    def stream(self, method: Callable[..., Any], request: Any, *, timeout_s: float | None) -> Any:
        """Start a call with many answers, on behalf of this task's caller; whoever reads it cancels
        it at the end. Without `timeout_s` it may last for ever."""
        return method(request, timeout=timeout_s, metadata=callers.outgoing())

    async def insist(
        self,
        method: Callable[..., Awaitable[R]],
        request: Any,
        *,
        what: str,
        timeout_s: float = 0.0,
    ) -> R:
        """Call until it answers: a service that is killed and comes back only delays a job.

        Raises PeerUnavailable or Overloaded after `give_up_s`, other StillhouseErrors at once.
        """
        return await self.persist(lambda: self.ask(method, request, timeout_s=timeout_s), what=what)

    async def persist(self, attempt: Callable[[], Awaitable[R]], *, what: str) -> R:
        """Run `attempt` until no service is away or overloaded in it, for `give_up_s` at most."""
        return await retrying(attempt, give_up_s=self.give_up_s, what=what)

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close(grace=None) for channel in self.channels))
