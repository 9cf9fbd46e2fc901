"""A language job through four processes, on the real 135 M model, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from stillhouse.gateway.v1 import jobs_pb2

from tests.e2e import language
from tests.e2e.suite import LANGUAGE_SERVICES, PROJECT, Suite, suite

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Suite, jobs_pb2.DistillationJob]]:
    """A suite in which an adapter has learned for two steps."""
    folder = tmp_path_factory.mktemp("language")
    with suite(folder, services=LANGUAGE_SERVICES) as running:
        for what in ("facts", "words"):
            language.add_texts(running, what, f"builtin:wordnet-{what}?facts={language.FACTS}")
        language.add_texts(running, "openings", "builtin:sotu-text-openings", 20)
        language.add_texts(running, "questions", "builtin:wordnet-questions")
        yield running, running.finish(running.create(language.supervised(2)))


Ran = tuple[Suite, jobs_pb2.DistillationJob]


def test_the_adapter_is_served_at_once(ran: Ran) -> None:
    running, job = ran
    assert job.model == f"{PROJECT}/models/tuned"
    assert language.generate(running, job.model, "The capital of France is").strip()
    files = language.files(running, job.model)
    assert files.base == "smollm2-135m"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files.files)


def test_the_report_has_a_learning_curve(ran: Ran) -> None:
    running, job = ran
    report = running.read_json(job.report.digest)
    assert report["kind"] == "language"
    assert report["trained_tokens"]
    curves = report["curves"]
    assert isinstance(curves, list)
    assert all(0 < point["loss"] < 12 for point in curves if "loss" in point)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"seed_prompts": []}, grpc.StatusCode.INVALID_ARGUMENT, "seed_prompts"),
        ({"tuned": f"{PROJECT}/models/nobody"}, grpc.StatusCode.NOT_FOUND, "nobody"),
        (
            {"target": f"{PROJECT}/models/efficientnet-lite0"},
            grpc.StatusCode.FAILED_PRECONDITION,
            "language model",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    ran: Ran, change: dict[str, object], code: grpc.StatusCode, text: str
) -> None:
    running, _ = ran
    job = language.tuneshift(running, steps=1)
    for name, value in change.items():
        if isinstance(value, list):
            del getattr(job.tuneshift, name)[:]
        else:
            setattr(job.tuneshift, name, value)
    with pytest.raises(grpc.RpcError) as caught:
        running.create(job)
    assert caught.value.code() == code
    assert text in str(caught.value.details())
