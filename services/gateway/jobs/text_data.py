"""Which records of text datasets a job trains and measures on, as shards in the blob store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.texts import (
    SHARD_RECORDS,
    TextManifest,
    TextRecord,
    pack_records,
    unpack_records,
)
from services.common.verifiers import needs_reference
from services.gateway.jobs.job import Tools
from services.gateway.jobs.plans import DatasetPlan, TextInputs

Keep = Callable[[TextRecord], bool]


@dataclass(frozen=True)
class Measured:
    """Shards of held-out records, by what is measured on them."""

    texts: tuple[str, ...]
    choices: tuple[str, ...]
    tasks: tuple[str, ...]


def is_trainable(record: TextRecord) -> bool:
    """Whether a record has tokens to learn."""
    return bool(record.text) or bool(record.prompt and record.answer)


def is_prompt(record: TextRecord) -> bool:
    """Whether a record can be asked; questions with choices are for measuring alone."""
    return bool(record.prompt) and not record.choices


async def shards_of(
    tools: Tools,
    project: str,
    dataset: DatasetPlan,
    split: str,
    keep: Keep,
    *,
    chat: bool = False,
    prefix: str = "",
) -> list[str]:
    """Return digests of shards of the records of `split` that `keep` accepts.

    `chat` makes every prompt a user turn, `prefix` stands before every record's name. Shards that
    stay as they are keep their digest.
    """

    def change(record: TextRecord) -> TextRecord:
        named = replace(record, record_id=prefix + record.record_id) if prefix else record
        return as_chat(named) if chat else named

    def work() -> list[str]:
        found = []
        for records in _shards(tools.blobs, project, dataset, split):
            kept = [change(record) for record in records if keep(record)]
            if kept:
                found.append(tools.blobs.put(project, pack_records(kept)))
        return found

    return await asyncio.to_thread(work)


async def records_of(
    tools: Tools, project: str, dataset: DatasetPlan, split: str, keep: Keep
) -> list[TextRecord]:
    """Return the records of `split` that `keep` accepts, in order."""

    def work() -> list[TextRecord]:
        shards = _shards(tools.blobs, project, dataset, split)
        return [record for records in shards for record in records if keep(record)]

    return await asyncio.to_thread(work)


async def store_records(tools: Tools, project: str, records: Sequence[TextRecord]) -> list[str]:
    """Store records as shards and return their digests."""

    def work() -> list[str]:
        return [
            tools.blobs.put(project, pack_records(records[at : at + SHARD_RECORDS]))
            for at in range(0, len(records), SHARD_RECORDS)
        ]

    return await asyncio.to_thread(work)


async def held_out(
    tools: Tools,
    project: str,
    datasets: Sequence[DatasetPlan],
    verifier: language_pb2.Verifier | None,
    *,
    chat: bool,
) -> Measured:
    """Return the shards of all `test` records: texts and answers to predict, questions with
    choices, and tasks where there is a verifier.

    Where several datasets have records of a kind, the dataset's id stands before their names, so
    that `by_dataset` can tell them apart.
    """

    def is_task(record: TextRecord) -> bool:
        if verifier is None or not is_prompt(record):
            return False
        return bool(record.reference) or not needs_reference(verifier)

    kinds: tuple[Keep, ...] = (is_trainable, lambda record: bool(record.choices), is_task)
    measured: list[tuple[str, ...]] = []
    for keep in kinds:
        found = {
            one["name"]: await shards_of(tools, project, one, "test", keep, chat=chat)
            for one in datasets
        }
        if sum(map(bool, found.values())) > 1:
            for one in datasets:
                prefix = dataset_prefix(one)
                found[one["name"]] = await shards_of(
                    tools, project, one, "test", keep, chat=chat, prefix=prefix
                )
        measured.append(tuple(digest for shards in found.values() for digest in shards))
    return Measured(*measured)


def measured_datasets(inputs: TextInputs) -> list[DatasetPlan]:
    """Return the dataset itself and the further ones, each once."""
    found = [inputs["dataset"], *inputs["evaluation"]]
    return list({one["name"]: one for one in found if one is not None}.values())


def dataset_prefix(dataset: DatasetPlan) -> str:
    """Return what stands before the names of a dataset's records among others."""
    return f"{dataset['name'].rsplit('/', 1)[-1]}/"


def evaluation_of(
    measured: Measured,
    targets: Sequence[str],
    verifier: language_pb2.Verifier | None,
    sampling: language_pb2.Sampling,
) -> student_pb2.LanguageEvaluation:
    """Return what a run measures. Tasks are answered greedily, so that equal models measure the
    same."""
    evaluation = student_pb2.LanguageEvaluation(
        text_shards=blob_refs(measured.texts),
        target_shards=blob_refs(targets),
        choice_shards=blob_refs(measured.choices),
        task_shards=blob_refs(measured.tasks),
    )
    if verifier is not None and measured.tasks:
        evaluation.verifier.CopyFrom(verifier)
        evaluation.sampling.max_tokens = sampling.max_tokens
        evaluation.sampling.stop.extend(sampling.stop)
    return evaluation


def blob_refs(digests: Iterable[str]) -> list[items_pb2.BlobRef]:
    """Return digests as messages."""
    return [items_pb2.BlobRef(digest=digest) for digest in digests]


def as_chat(record: TextRecord) -> TextRecord:
    """Return the record with its prompt as a user turn; a plain text stays."""
    return replace(record, chat=True) if record.prompt else record


def _shards(
    blobs: BlobStore, project: str, dataset: DatasetPlan, split: str
) -> Iterator[list[TextRecord]]:
    manifest = TextManifest.from_bytes(blobs.get(project, dataset["manifest"]))
    for shard in manifest.of(split):
        yield unpack_records(blobs.get(project, shard.digest))
