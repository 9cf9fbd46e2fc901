"""Measuring and cutting through the service, in its workers."""

from __future__ import annotations

import grpc
import pytest
from stillhouse.student.v1 import student_pb2

from services.common.model_records import LanguageModelRecord
from tests.student import language_suite, suite
from tests.student.test_pruning_recipe import importance_request, share


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("pruning-service")
    catalogue = language_suite.make_catalogue(home)
    with suite.service(
        home,
        threads="1",
        catalogue=str(catalogue),
        cache_dir=str(home / "cache"),
    ) as service:
        yield service


def test_a_candidate_becomes_a_model(running):
    texts = language_suite.put_records(running.blobs, language_suite.texts())
    asked = importance_request("measure", text_shards=[texts], budget=share(0.6))
    found = running.train(asked)[-1].result.importance
    best = found.candidates[0]
    cut = student_pb2.PruneCut(importance=found.importance, shape=best.shape)
    options = language_suite.training(max_steps=2)
    events = running.train(
        language_suite.request("cut", text_shards=[texts], training=options, cut=cut)
    )
    data = running.blobs.get(suite.PROJECT, events[-1].result.language.model.digest)
    card = LanguageModelRecord.from_bytes(data).card
    assert card["cut"]["shape"]["parameters"] == best.parameters
    assert card["cut"]["importance"] == found.importance.digest


def test_malformed_recipes_are_refused_at_once(running):
    with pytest.raises(grpc.RpcError) as caught:
        running.train(importance_request("empty"))
    assert suite.violations(caught.value) == ["text_shards"]
    with pytest.raises(grpc.RpcError) as caught:
        running.train(language_suite.request("empty", cut=student_pb2.PruneCut()))
    assert suite.violations(caught.value) == ["cut.importance"]
    with pytest.raises(grpc.RpcError, match="language, importance, classifier is required"):
        running.train(student_pb2.TrainRequest(project=suite.PROJECT, run_id="none"))


def test_too_little_text_comes_back_as_the_run_s_error(running):
    texts = language_suite.put_records(running.blobs, language_suite.texts(1))
    error = running.train(importance_request("little", text_shards=[texts], sequence_length=96))
    assert suite.status_code(error[-1].error) == grpc.StatusCode.INVALID_ARGUMENT
    assert "at least 2 sequences" in error[-1].error.message
