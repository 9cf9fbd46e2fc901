"""What is told of models in memory, as messages."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from stillhouse.common.v1 import loaded_pb2

from services.common.names import join
from services.common.resident import LoadedModel


def loaded_message(project: str, collection: str, model: LoadedModel) -> loaded_pb2.LoadedModel:
    """Describe a model to a project; `collection` is the middle of its name."""
    return loaded_pb2.LoadedModel(
        name=join(project, collection, model.model_id),
        digest=model.digest,
        size_bytes=model.size_bytes,
        pinned=model.pinned,
        calls=model.users,
        load_time=_timestamp(model.loaded_s),
        last_use_time=_timestamp(model.used_s),
    )


def loaded_messages(
    project: str, collection: str, models: Iterable[LoadedModel]
) -> list[loaded_pb2.LoadedModel]:
    """Describe the models that a project can use, longest unused first."""
    visible = [one for one in models if one.project in ("", project)]
    ordered = sorted(visible, key=lambda one: one.used_s)
    return [loaded_message(project, collection, one) for one in ordered]


def _timestamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromMilliseconds(round(seconds * 1000))
    return made
