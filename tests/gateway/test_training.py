"""What a training run made, as the gateway keeps it."""

from __future__ import annotations

import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.common.errors import Internal
from services.gateway.jobs.training import _digests


def test_a_classifier_is_kept_by_the_names_of_its_parts() -> None:
    made = student_pb2.ClassifierResult(
        weights=items_pb2.BlobRef(digest="a" * 64, size_bytes=3),
        card=items_pb2.BlobRef(digest="b" * 64),
        report=items_pb2.BlobRef(digest="c" * 64),
    )
    found = _digests(student_pb2.TrainResult(classifier=made))
    assert found == {"weights": "a" * 64, "card": "b" * 64, "report": "c" * 64}
    with pytest.raises(Internal):
        _digests(student_pb2.TrainResult())
