"""What StudentService gives one project of another's students, data and runs: nothing, no sign.

It is asked directly, as whoever gets past the gateway would. The tables are checked against the
descriptors: an RPC without a row fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from stillhouse.inference.v2 import open_inference_pb2 as oip
from stillhouse.student.v1 import student_pb2 as pb
from stillhouse.student.v1 import student_pb2_grpc

from services.common.blobs import BlobStore
from services.common.model_records import LanguageModelRecord
from tests import isolating
from tests.isolating import OPEN_INFERENCE, OURS, THEIRS
from tests.student import classifier_suite, language_suite, suite
from tests.student.suite import CLASSES, DIM, ref

pytestmark = pytest.mark.asyncio(loop_scope="module")
RPCS = isolating.methods(pb.DESCRIPTOR.services_by_name["StudentService"], OPEN_INFERENCE)
COPIER = "copier"
"""A project that has copies of the student's own two files, and of nothing else."""


@dataclass(frozen=True)
class Owned(isolating.Owned):
    """A student and its data, texts, photos and a model by digest; runs by id."""

    weights: str
    card: str
    manifest: str
    teacher: str
    regions: str
    features: str
    bank: str
    texts: str
    targets: str
    photos: str
    outputs: str
    model: str
    record: str
    run: str

    @property
    def student(self) -> pb.StudentRef:
        return pb.StudentRef(weights_digest=self.weights, card_digest=self.card)


NOTHING = Owned(*["0" * 64] * 13, "nobody")


def photo_rows() -> list[pb.RegionInput]:
    return [suite.region_input(np.ones((2, DIM), np.float16), "one")]


def train(project: str, owned: Owned, **recipe: Any) -> pb.TrainRequest:
    """A request under the id of the owner's own run of that kind."""
    (kind,) = recipe
    return pb.TrainRequest(project=project, run_id=f"{owned.run}-{kind}", **recipe)


def data(owned: Owned, **shards: str) -> pb.TrainingData:
    named = {name: [ref(one) for one in digests.split()] for name, digests in shards.items()}
    return pb.TrainingData(manifest=ref(owned.manifest), **named)  # type: ignore[arg-type]


def concept(project: str, owned: Owned) -> pb.TrainRequest:
    recipe = pb.ConceptRecipe(
        data=data(owned, teacher_shards=owned.teacher, region_shards=owned.regions),
        concepts=[f"word {k}" for k in range(suite.WORDS)],
        concept_embeddings=ref(owned.bank),
        control_draws=-1,
        nec=4,
    )
    return train(project, owned, concept=recipe)


def head(project: str, owned: Owned) -> pb.TrainRequest:
    recipe = pb.LinearHeadRecipe(
        data=data(owned, feature_shards=owned.features),
        backbone="small",
        backbone_digest="ab" * 32,
    )
    return train(project, owned, linear_head=recipe)


def language(project: str, owned: Owned, student: str, **more: Any) -> pb.TrainRequest:
    recipe = pb.LanguageRecipe(
        student=student, training=language_suite.training(max_steps=1), discard_model=True, **more
    )
    run_id = "-".join([owned.run, student[:9], *more])
    return pb.TrainRequest(project=project, run_id=run_id, language=recipe)


def importance(project: str, owned: Owned, student: str) -> pb.TrainRequest:
    recipe = pb.ImportanceRecipe(
        student=student, text_shards=[ref(owned.texts)], sequence_length=32, max_sequences=2
    )
    run_id = f"{owned.run}-cut-{student[:9]}"
    return pb.TrainRequest(project=project, run_id=run_id, importance=recipe)


def classifier(project: str, owned: Owned) -> pb.TrainRequest:
    recipe = pb.ClassifierRecipe(
        data=pb.TrainingData(manifest=ref(owned.photos), teacher_shards=[ref(owned.outputs)]),
        architecture="small-cnn",
        input_size=classifier_suite.SIZE_PX,
        training=classifier_suite.training(max_steps=1),
        hard_only=True,
        skip_onnx=True,
    )
    return train(project, owned, classifier=recipe)


def edit() -> pb.ConceptEdit:
    return pb.ConceptEdit(label=CLASSES[0], concept="word 0", direction=pb.DIRECTION_UP, factor=2.0)


def infer(project: str, owned: Owned) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(
        model_name=f"{project}/{owned.weights}", model_version=owned.card
    )
    request.inputs.add(name="embeddings", datatype="FP16", shape=[1, 2, DIM])
    request.raw_input_contents.append(np.ones((1, 2, DIM), "<f2").tobytes())
    return request


TINY = language_suite.MODEL
REFUSED: isolating.Rows = {
    "Train": [concept, head],
    "Predict": [lambda p, o: pb.PredictRequest(project=p, student=o.student, items=photo_rows())],
    "Explain": [lambda p, o: pb.ExplainRequest(project=p, student=o.student, items=photo_rows())],
    "Evaluate": [lambda p, o: pb.EvaluateRequest(project=p, student=o.student)],
    "Inspect": [lambda p, o: pb.InspectRequest(project=p, student=o.student)],
    "Refit": [lambda p, o: pb.RefitRequest(project=p, student=o.student, edits=[edit()])],
    "Export": [lambda p, o: pb.ExportRequest(project=p, student=o.student)],
    "ModelMetadata": [
        lambda p, o: oip.ModelMetadataRequest(name=f"{p}/{o.weights}", version=o.card)
    ],
    "ModelInfer": [infer],
}
"""Requests for what a project has by name or digest."""
SLOW: list[isolating.Ask] = [
    lambda p, o: language(p, o, TINY, text_shards=[ref(o.texts)]),
    lambda p, o: language(p, o, TINY, target_shards=[ref(o.targets)]),
    lambda p, o: language(p, o, o.model, text_shards=[ref(o.texts)]),
    lambda p, o: language(p, o, o.record, text_shards=[ref(o.texts)]),
    lambda p, o: importance(p, o, TINY),
    lambda p, o: importance(p, o, o.model),
    classifier,
]
"""Recipes that load a network."""
UNSEEN: isolating.Rows = {
    "StopTraining": [
        lambda p, o: pb.StopTrainingRequest(project=p, run_id=f"{o.run}-long"),
    ],
    "RemoveRuns": [
        lambda p, o: pb.RemoveRunsRequest(project=p, dry_run=p == THEIRS),
        lambda p, o: pb.RemoveRunsRequest(project=p, run_id_prefix=o.run, dry_run=p == THEIRS),
    ],
    "ModelReady": [lambda p, o: oip.ModelReadyRequest(name=f"{p}/{o.weights}", version=o.card)],
    "ModelStatistics": [lambda p, o: oip.ModelStatisticsRequest(name=f"{p}/{o.weights}")],
    "RepositoryIndex": [lambda p, o: oip.RepositoryIndexRequest(repository_name=p)],
}
"""Requests about runs, and about all that a project has."""
ELSEWHERE = {
    **dict.fromkeys(("ServerLive", "ServerReady", "ServerMetadata"), "of the service itself"),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), "nobody has them here"),
}


@dataclass(frozen=True)
class Running:
    """A service process, and what the project THEIRS has."""

    channel: grpc.aio.Channel
    service: suite.Service
    owned: Owned

    @property
    def blobs(self) -> BlobStore:
        return self.service.blobs


def put_model(blobs: BlobStore, folder: Path) -> str:
    """Store the tiny model's files as one of the project's own; return its record's digest."""
    files = {
        path.name: blobs.put(THEIRS, path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".safetensors", ".jinja")
    }
    record = LanguageModelRecord("checkpoint", files, "0" * 64, "0" * 64).to_bytes()
    blobs.put_ref(THEIRS, "models/tuned", record)
    return blobs.put(THEIRS, record)


def fill(blobs: BlobStore, folder: Path) -> Owned:
    """Give THEIRS data of every kind, and a model; its student is still to be trained."""
    made, photos = suite.make_data(blobs), classifier_suite.make_data(blobs, items=15)
    sentences = language_suite.texts(6)
    sequences = language_suite.sequences_of(sentences)
    return Owned(
        weights="0" * 64,
        card="0" * 64,
        manifest=made.manifest,
        teacher=" ".join(made.teacher),
        regions=" ".join(made.regions),
        features=" ".join(made.features),
        bank=made.bank,
        texts=language_suite.put_records(blobs, sentences).digest,
        targets=language_suite.put_targets(blobs, sequences, "sampled").digest,
        photos=photos.manifest,
        outputs=" ".join(photos.teacher),
        model="tuned",
        record=put_model(blobs, folder / TINY),
        run="secret",
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("isolation")
    catalogue = language_suite.make_catalogue(folder)
    settings = {"catalogue": str(catalogue), "cache_dir": str(folder / "cache"), "threads": "1"}
    with suite.service(folder, **settings) as service:
        owned = fill(service.blobs, folder)
        async with grpc.aio.insecure_channel(service.address) as channel:
            trained = await isolating.call(channel, RPCS["Train"], concept(THEIRS, owned))
            student = trained.messages[-1].result.concept.student  # type: ignore[attr-defined]
            assert student.weights_digest, trained
            names = {"weights": student.weights_digest, "card": student.card_digest}
            yield Running(channel, service, replace(owned, **names))


async def test_every_rpc_is_in_a_table() -> None:
    isolating.check_tables(RPCS, REFUSED, UNSEEN, ELSEWHERE)
    kinds = {field.name for field in pb.TrainRequest.DESCRIPTOR.oneofs_by_name["recipe"].fields}
    asked = [ask(THEIRS, NOTHING) for ask in (*REFUSED["Train"], *SLOW)]
    assert {one.WhichOneof("recipe") for one in asked} == kinds


@pytest.mark.parametrize("name", list(REFUSED))
async def test_what_is_of_another_project_is_not_there(running: Running, name: str) -> None:
    await check_refused(running, name, REFUSED[name])


@pytest.mark.slow
@pytest.mark.parametrize("ask", SLOW)
async def test_data_of_another_project_trains_no_network(
    running: Running, ask: isolating.Ask
) -> None:
    await check_refused(running, "Train", [ask])


async def check_refused(running: Running, name: str, rows: Sequence[isolating.Ask]) -> None:
    before = isolating.stored(running.service.folder / "blobs")
    for ask in rows:
        await isolating.check_refused(running.channel, RPCS[name], ask, running.owned)
    assert before.items() <= isolating.stored(running.service.folder / "blobs").items()


@pytest.mark.parametrize("name", list(UNSEEN))
async def test_nothing_of_another_project_is_seen_stopped_or_removed(
    running: Running, name: str
) -> None:
    ours = pb.RemoveRunsRequest(project=OURS)  # what it has asked for above
    await isolating.call(running.channel, RPCS["RemoveRuns"], ours)
    if name == "StopTraining":
        await begin_long_run(running)
    for ask in UNSEEN[name]:
        await isolating.check_unseen(running.channel, RPCS[name], ask, running.owned)


async def begin_long_run(running: Running) -> None:
    """Start a run that goes on when nobody listens."""
    recipe = pb.LanguageRecipe(
        student=TINY,
        training=language_suite.training(max_steps=100_000),
        text_shards=[ref(running.owned.texts)],
        discard_model=True,
    )
    run_id = f"{running.owned.run}-long"
    request = pb.TrainRequest(project=THEIRS, run_id=run_id, language=recipe)
    stub = student_pb2_grpc.StudentServiceStub(running.channel)
    events = stub.Train(request)
    await events.read()
    events.cancel()


async def test_who_has_copies_of_a_student_has_not_its_data(running: Running) -> None:
    """Tables and fold fits lie in memory under the same digests, for the owner alone."""
    owned = running.owned
    for digest in (owned.weights, owned.card):
        running.blobs.put(COPIER, running.blobs.get(THEIRS, digest))
    predicted = REFUSED["Predict"][0](COPIER, owned)
    assert not (await isolating.call(running.channel, RPCS["Predict"], predicted)).refusals
    for name in ("Evaluate", "Inspect", "Refit"):
        for project, refused in ((THEIRS, False), (COPIER, True)):
            request = REFUSED[name][0](project, owned)
            answer = await isolating.call(running.channel, RPCS[name], request)
            assert bool(answer.refusals) == refused, answer
        assert answer.code == "NOT_FOUND"
    encoder = running.blobs.put(THEIRS, b"an encoder")
    export = pb.ExportRequest(project=COPIER, student=owned.student)
    export.format, export.encoder_onnx.digest = pb.EXPORT_FORMAT_ONNX, encoder
    assert (await isolating.call(running.channel, RPCS["Export"], export)).code == "NOT_FOUND"
