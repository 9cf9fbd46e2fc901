"""One call of each service that must come back with an answer, whatever was sent before it."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf.message import Message
from stillhouse.common.v1 import info_pb2, info_pb2_grpc, items_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.gateway.v1 import models_pb2, models_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from tests.e2e.suite import Suite
from tests.hostile import messages
from tests.hostile.names import ENCODER, LITE
from tests.support import photo

_TIMEOUT_S = 120
_NEW = 7777
"""Number of a photo that no hostile input holds, and no cache therefore."""


def _teacher(channel: grpc.Channel) -> Message:
    stub = teacher_pb2_grpc.TeacherServiceStub(channel)
    items = [items_pb2.ImageInput(data=photo(_NEW))]
    return stub.Classify(teacher_pb2.ClassifyRequest(model=LITE, items=items), timeout=_TIMEOUT_S)


def _concepts(channel: grpc.Channel) -> Message:
    stub = concepts_pb2_grpc.ConceptsServiceStub(channel)
    request = concepts_pb2.EmbedTextsRequest(encoder=ENCODER, texts=["a red apple"])
    return stub.EmbedTexts(request, timeout=_TIMEOUT_S)


def _student(channel: grpc.Channel) -> Message:
    stub = info_pb2_grpc.InfoServiceStub(channel)
    return stub.GetInfo(info_pb2.GetInfoRequest(), timeout=_TIMEOUT_S)


def _gateway(channel: grpc.Channel) -> Message:
    stub = models_pb2_grpc.ModelServiceStub(channel)
    items = [items_pb2.ImageInput(data=photo(_NEW))]
    request = models_pb2.EmbedProjectImagesRequest(encoder=ENCODER, items=items)
    return stub.EmbedProjectImages(request, timeout=_TIMEOUT_S)


_CALLS: dict[str, Callable[[grpc.Channel], Message]] = {
    "teacher": _teacher,
    "concepts": _concepts,
    "student": _student,
    "gateway": _gateway,
}


def unanswered(suite: Suite) -> list[str]:
    """Return a line for each service that does not do its plain work."""
    found = []
    for name, call in _CALLS.items():
        try:
            with suite.channel(name) as channel:
                answer = call(channel)
        except grpc.RpcError as error:
            found.append(f"{name}: a good call gets {error.code().name}: {error.details()}")
            continue
        if not answer.ByteSize() or any(messages.statuses_of(answer)):
            found.append(f"{name}: a good call gets {str(answer)[:200] or 'nothing'}")
    return found
