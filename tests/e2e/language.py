"""Small language and tuneshift jobs on the real 135 M model, for tests of whole suites."""

from __future__ import annotations

import time

import grpc
from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)

from tests.e2e.suite import PROJECT, Suite

BASE = f"{PROJECT}/models/smollm2-135m"
FACTS = 8


def add_texts(suite: Suite, dataset_id: str, uri: str, max_items: int = 0) -> datasets_pb2.Dataset:
    """Create a dataset of texts and wait until it is ready."""
    with suite.channel() as channel:
        stub = datasets_pb2_grpc.DatasetServiceStub(channel)
        request = datasets_pb2.CreateDatasetRequest(
            project="default",
            dataset_id=dataset_id,
            uri=uri,
            max_items=max_items,
            kind=datasets_pb2.DATASET_KIND_TEXTS,
        )
        stub.CreateDataset(request, timeout=30)
        name = f"{PROJECT}/datasets/{dataset_id}"
        for _ in range(600):
            dataset = stub.GetDataset(datasets_pb2.GetDatasetRequest(name=name), timeout=30).dataset
            if dataset.state == datasets_pb2.DATASET_STATE_READY:
                return dataset
            assert dataset.state == datasets_pb2.DATASET_STATE_CREATING, dataset
            time.sleep(0.1)
    raise RuntimeError("the dataset was not ready in 60 s")


def prepare(suite: Suite, *, steps: int) -> None:
    """Add facts, questions, words and openings, and tune the base on the facts as `tuned`."""
    for what in ("facts", "questions", "words"):
        add_texts(suite, what, f"builtin:wordnet-{what}?facts={FACTS}")
    add_texts(suite, "openings", "builtin:sotu-text-openings", 20)
    suite.finish(suite.create(supervised(steps)), timeout_s=600)


def training(steps: int, **more: object) -> language_pb2.LanguageTraining:
    """A short training of an adapter."""
    return language_pb2.LanguageTraining(
        lora=language_pb2.Lora(rank=8),
        max_steps=steps,
        batch_sequences=4,
        learning_rate=2e-3,
        sequence_length=64,
        **more,  # type: ignore[arg-type]
    )


def supervised(steps: int) -> jobs_pb2.DistillationJob:
    """A job that learns the facts."""
    spec = jobs_pb2.LanguageJobSpec(
        dataset=f"{PROJECT}/datasets/facts",
        student=BASE,
        model_id="tuned",
        mode=jobs_pb2.LANGUAGE_MODE_SUPERVISED,
        training=training(steps),
    )
    return jobs_pb2.DistillationJob(language=spec)


def tuneshift(suite: Suite, *, steps: int, **more: object) -> jobs_pb2.DistillationJob:
    """A job of two small rounds from `tuned` into the base."""
    spec = jobs_pb2.TuneShiftJobSpec(
        base=BASE,
        tuned=f"{PROJECT}/models/tuned",
        target=BASE,
        seed_prompts=["Question: What is a {word}?\nAnswer:", "Define the word {word}.\nAnswer:"],
        words=words(suite),
        off_domain_dataset=f"{PROJECT}/datasets/openings",
        off_domain_share=0.25,
        rounds=2,
        prompts_per_round=8,
        sampling=language_pb2.Sampling(max_tokens=12, temperature=0.7),
        training=training(steps, checkpoint_steps=2),
        evaluation_datasets=[f"{PROJECT}/datasets/questions"],
        model_id="shifted",
        **more,  # type: ignore[arg-type]
    )
    return jobs_pb2.DistillationJob(tuneshift=spec)


def words(suite: Suite) -> list[str]:
    """The nouns of the facts among as many others."""
    with suite.channel() as channel:
        stub = datasets_pb2_grpc.DatasetServiceStub(channel)
        request = datasets_pb2.ListDatasetItemsRequest(dataset=f"{PROJECT}/datasets/words")
        return [item.text.text for item in stub.ListDatasetItems(request, timeout=30).items]


def samples(suite: Suite, name: str) -> list[jobs_pb2.JobSample]:
    """All examples of a tuneshift job, in order."""
    with suite.channel() as channel:
        stub = jobs_pb2_grpc.DistillationServiceStub(channel)
        request = jobs_pb2.ListJobSamplesRequest(job=name, page_size=1000)
        return [*stub.ListJobSamples(request, timeout=60).samples]


def files(suite: Suite, model: str) -> models_pb2.ProjectModelFiles:
    """What a model that a job made consists of. A service that has just come back is UNAVAILABLE
    until the gateway has connected again, which callers are to wait for."""
    request = models_pb2.GetTeacherRequest(name=model)
    until_s = time.monotonic() + 20
    with suite.channel() as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        while True:
            try:
                return stub.GetTeacher(request, timeout=120).files
            except grpc.RpcError as error:
                away = error.code() == grpc.StatusCode.UNAVAILABLE
                if not away or time.monotonic() > until_s:
                    raise
            time.sleep(0.2)


def generate(suite: Suite, model: str, prompt: str) -> str:
    """What a model answers."""
    with suite.channel() as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        request = models_pb2.GenerateTextRequest(
            model=model,
            prompt=language_pb2.Prompt(text=prompt),
            sampling=language_pb2.Sampling(max_tokens=8),
        )
        events = [*stub.GenerateText(request, timeout=120)]
    assert events[-1].WhichOneof("event") == "generation"
    return events[-1].generation.text
