"""The jobs that faults are injected into: small ones of every kind, each in a project of its own,
so that nothing is found from an earlier one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2
from stillhouse_client.client import AsyncClient
from stillhouse_client.jobs import Spec

from services.common.blobs import BlobStore
from services.common.errors import NotFound

IMAGES = 160
SOURCE = "source"
"""The project whose teacher head all others use."""
TINY = "tiny-llama"
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_PATIENCE_S = 300.0
_MAKE_TINY = (
    "import sys; from pathlib import Path; from tests.student import language_suite as s;"
    "f = Path(sys.argv[1]); s.make_catalogue(f); s.make_tokenizer()"
)


def client(address: str, project: str) -> AsyncClient:
    """A client that waits for a gateway as long as any fault lasts."""
    return AsyncClient(address, project=project, timeout_s=20, retry_s=_PATIENCE_S)


async def make_catalogue(folder: Path) -> Path:
    """Write a catalogue with a tiny random language model, and texts for it, into a folder; a
    process of its own does it, because it needs torch."""
    path = folder / "catalogue.toml"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _MAKE_TINY, str(folder), stdout=asyncio.subprocess.DEVNULL
        )
        if await made.wait():
            raise RuntimeError("the tiny language model could not be made")
        (folder / "texts.jsonl").write_text("\n".join(_texts()))
    return path


async def prepare_source(address: str) -> None:
    """Train the teacher head, in the one project that all others take it from."""
    async with client(address, SOURCE) as one:
        await _dataset(one, "fruit", "builtin:fruit-coarse", max_items=IMAGES)
        spec = jobs_pb2.TeacherHeadJobSpec(
            dataset=one.datasets.full("fruit"),
            backbone=one.models.full("efficientnet-lite0"),
            model_id="fruit-teacher",
        )
        name = (await one.jobs.create(spec)).name
        await one.jobs.wait(name, give_up_s=_PATIENCE_S)


async def prepare(address: str, project: str, job: str, blobs: Path, texts: Path) -> None:
    """Give a project the data and the models that a kind of job needs."""
    async with client(address, project) as one:
        if job in ("concept", "classifier"):
            await asyncio.to_thread(_transplant, BlobStore(str(blobs)), project)
            await _dataset(one, "fruit", "builtin:fruit-coarse", max_items=IMAGES)
            return
        texts_kind = datasets_pb2.DATASET_KIND_TEXTS
        await _dataset(one, "notes", f"file://{texts}", kind=texts_kind)
        if job == "tuneshift":
            name = (await one.jobs.create(_tuned(one))).name
            await one.jobs.wait(name, give_up_s=_PATIENCE_S)


def spec_of(one: AsyncClient, job: str, seed: int) -> Spec:
    """What a job of a kind is asked to do."""
    return _SPECS[job](one, seed)


async def outcome(one: AsyncClient, done: jobs_pb2.DistillationJob, blobs: Path) -> str:
    """The digest of the weights that a job has made."""
    if done.student_version:
        _, student, _, version = done.student_version.rsplit("/", 3)
        found = await one.students.version(student, version)
        return str(found.student_ref.weights_digest)
    model = done.model.rpartition("/")[2]
    store = BlobStore(str(blobs))
    record = await asyncio.to_thread(store.get_ref, one.project, f"models/{model}")
    parsed = json.loads(record)
    return str(parsed.get("weights_digest") or parsed["weights"])


async def _dataset(one: AsyncClient, name: str, uri: str, **more: int) -> None:
    # A request id of its own each time: what an earlier campaign in this folder made is found.
    with contextlib.suppress(Exception):
        found = await one.datasets.get(name)
        if found.state == datasets_pb2.DATASET_STATE_READY:
            return
    await one.datasets.create(name, uri=uri, request_id=f"dataset-{name}", **more)
    async with asyncio.timeout(_PATIENCE_S):
        while (found := await one.datasets.get(name)).state != datasets_pb2.DATASET_STATE_READY:
            if found.state == datasets_pb2.DATASET_STATE_FAILED:
                raise RuntimeError(f"dataset {name}: {found.error.message}")
            await asyncio.sleep(0.1)


def _transplant(store: BlobStore, project: str) -> None:
    """Copy the teacher head of the source project, with every blob that it names."""
    ref = "models/fruit-teacher"
    record = store.get_ref(SOURCE, ref)
    waiting, seen = [*_DIGEST.findall(record)], set[bytes]()
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        with contextlib.suppress(NotFound):
            data = store.get(SOURCE, one.decode())
            store.put(project, data)
            if data[:1] == b"{":
                waiting += _DIGEST.findall(data)
    store.put_ref(project, ref, record.replace(SOURCE.encode(), project.encode()))


def _concept(one: AsyncClient, seed: int) -> Spec:
    return jobs_pb2.ConceptJobSpec(
        dataset=one.datasets.full("fruit"),
        teacher=one.models.full("fruit-teacher"),
        control_draws=2,
        seed=seed,
    )


def _classifier(one: AsyncClient, seed: int) -> Spec:
    spec = jobs_pb2.ClassifierJobSpec(
        dataset=one.datasets.full("fruit"),
        teacher=one.models.full("fruit-teacher"),
        architecture="small-cnn",
        input_size=32,
        augmentation=items_pb2.Augmentation(policy="flip_crop", views=2),
        model_id="small",
    )
    spec.training.max_steps, spec.training.batch_images = 60, 16
    spec.training.checkpoint_steps, spec.training.seed = 5, seed
    return spec


def _training(seed: int, steps: int) -> language_pb2.LanguageTraining:
    return language_pb2.LanguageTraining(
        max_steps=steps,
        batch_sequences=4,
        learning_rate=1e-2,
        sequence_length=64,
        checkpoint_steps=5,
        seed=seed,
    )


def _language(one: AsyncClient, seed: int) -> Spec:
    return jobs_pb2.LanguageJobSpec(
        dataset=one.datasets.full("notes"),
        teacher=one.models.full(TINY),
        student=one.models.full(TINY),
        keep_layers=[0, 2],
        model_id="small",
        training=_training(seed, 60),
    )


def _prune(one: AsyncClient, seed: int) -> Spec:
    return jobs_pb2.PruneJobSpec(
        dataset=one.datasets.full("notes"),
        model=one.models.full(TINY),
        training=_training(seed, 60),
        non_embedding_share=0.6,
        candidates=2,
        ranking_steps=20,
        model_id="small",
    )


def _tuned(one: AsyncClient) -> Spec:
    return jobs_pb2.LanguageJobSpec(
        dataset=one.datasets.full("notes"),
        student=one.models.full(TINY),
        model_id="tuned",
        mode=jobs_pb2.LANGUAGE_MODE_SUPERVISED,
        training=_training(0, 30),
    )


def _tuneshift(one: AsyncClient, seed: int) -> Spec:
    return jobs_pb2.TuneShiftJobSpec(
        base=one.models.full(TINY),
        tuned=one.models.full("tuned"),
        target=one.models.full(TINY),
        seed_prompts=["{word} cat dog", "sun {word} sea"],
        words=["red", "blue", "cat", "dog", "sun", "sea", "ray", "day"],
        rounds=2,
        prompts_per_round=6,
        filter=jobs_pb2.TuneShiftFilter(tau=0.01, confident_share=1, duplicate_similarity=1),
        sampling=language_pb2.Sampling(max_tokens=16, temperature=0.7),
        training=_training(seed, 40),
        model_id="small",
        seed=seed,
    )


_SPECS: dict[str, Callable[[AsyncClient, int], Spec]] = {
    "concept": _concept,
    "classifier": _classifier,
    "language": _language,
    "prune": _prune,
    "tuneshift": _tuneshift,
}


def _texts() -> Sequence[str]:
    """Sentences of a simple pattern."""
    words = ("red", "blue", "cat", "dog", "sun", "sea")
    found = []
    for split, count in (("train", 96), ("test", 24)):
        for at in range(count):
            said = " ".join(words[(at * 7 + n * n * (at % 5 + 1)) % 6] for n in range(12))
            found.append(json.dumps({"text": f"{at} {said}.", "split": split}))
    return found
