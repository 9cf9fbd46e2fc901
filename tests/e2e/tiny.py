"""A suite over a tiny random language model and texts for it, and prune jobs on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2

from tests.e2e import language
from tests.e2e.suite import LANGUAGE_SERVICES, PROJECT, Suite, suite
from tests.student import language_suite


@contextmanager
def tiny_suite(folder: Path, *, records: int = 24) -> Iterator[Suite]:
    """Run teacher, student and gateway in `folder`, with a dataset `notes` of so many train and
    test texts, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = language_suite.make_catalogue(folder)
    texts = [
        json.dumps({"text": one.text, "split": split})
        for split in ("train", "test")
        for one in language_suite.texts(records, split=split)
    ]
    (folder / "texts.jsonl").write_text("\n".join(texts))
    with pytest.MonkeyPatch.context() as patch:
        for service in LANGUAGE_SERVICES:
            patch.setenv(f"{service.upper()}_CATALOGUE", str(catalogue))
        with suite(folder, threads=1, services=LANGUAGE_SERVICES) as running:
            language.add_texts(running, "notes", f"file://{folder}/texts.jsonl")
            yield running


def prune(*, steps: int = 4, checkpoint_steps: int = 0, **more: Any) -> jobs_pb2.DistillationJob:
    """A prune job on the tiny model."""
    found = jobs_pb2.PruneJobSpec(
        dataset=f"{PROJECT}/datasets/notes",
        model=f"{PROJECT}/models/{language_suite.MODEL}",
        training=language_pb2.LanguageTraining(
            max_steps=steps,
            batch_sequences=4,
            learning_rate=1e-2,
            sequence_length=96,
            checkpoint_steps=checkpoint_steps,
        ),
        **more,
    )
    return jobs_pb2.DistillationJob(prune=found)


def model_names(running: Suite) -> list[str]:
    """The models that jobs have published."""
    return sorted(path.name for path in running.folder.glob("blobs/projects/*/refs/models/*"))
