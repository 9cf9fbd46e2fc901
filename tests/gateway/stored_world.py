"""A database and a blob store with a dataset, a student and stages' outputs, as a gateway leaves
them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from stillhouse.gateway.v1 import datasets_pb2

from services.common.manifest import Item, Manifest
from services.common.shelf import Shelf
from services.gateway.keeping.graph import Graph, Walk
from services.gateway.keeping.roots import Rows, read_rows
from services.gateway.store import DatasetRow, JobRow, Store, StudentRow, VersionRow
from tests.support import photo

P = "default"


@dataclass
class Stored:
    """What lies in a folder, and the digests of it by a name."""

    folder: Path
    store: Store
    shelf: Shelf
    digests: dict[str, str]

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/gateway.db"

    def rows(self) -> Rows:
        return read_rows(self.store, self.url)

    def graph(self) -> Graph:
        return Walk(self.shelf, P).run(self.rows().roots)

    def path(self, name: str) -> Path:
        digest = self.digests[name]
        return self.folder / "blobs" / "projects" / P / "blobs" / digest[:2] / digest

    def flip(self, name: str) -> None:
        """Change one bit."""
        data = bytearray(self.path(name).read_bytes())
        data[len(data) // 2] ^= 1
        self.path(name).write_bytes(data)

    def age(self, hours: float) -> None:
        """Make all files so much older."""
        for path in (self.folder / "blobs").rglob("*"):
            if path.is_file():
                then = path.stat().st_mtime - hours * 3600
                os.utime(path, (then, then))

    def put(self, name: str, data: bytes) -> str:
        self.digests[name] = self.shelf.put(P, data)
        return self.digests[name]

    def put_json(self, name: str, value: object) -> str:
        return self.put(name, json.dumps(value).encode())

    def exists(self, name: str) -> bool:
        return self.shelf.exists(P, self.digests[name])


def stored_world(folder: Path) -> Stored:
    """Make one: a dataset read from a folder, a tuned student, a model, a concept set, stages."""
    world = Stored(
        folder, Store(f"sqlite:///{folder}/gateway.db"), Shelf(str(folder / "blobs")), {}
    )
    source = folder / "photos"
    items = []
    for at in range(4):
        label = ("pear", "plum")[at % 2]
        (source / label).mkdir(parents=True, exist_ok=True)
        data = photo(at, size=(48, 32))
        (source / label / f"{at}.jpg").write_bytes(data)
        items.append(Item(f"{label}/{at}.jpg", world.put(f"image{at}", data), "train", (at % 2,)))
    manifest = world.put("manifest", Manifest(("pear", "plum"), False, tuple(items)).to_bytes())
    for name in ("teacher", "regions"):
        shard = world.put(name, f"shard of {name}".encode())
        value = json.dumps({"digest": shard, "invalid": {}})
        world.shelf.put_ref(P, f"stages/{name}/{'a' * 64}", value.encode())
    _students(world, manifest)
    request = datasets_pb2.CreateDatasetRequest(
        project=P, dataset_id="fruit", uri=f"file://{source}"
    )
    with world.store.write() as session:
        session.add(
            DatasetRow(
                project=P,
                dataset_id="fruit",
                state="READY",
                source_json=json_format.MessageToJson(request),
                manifest_digest=manifest,
            )
        )
    answers = world.put_json("answers", {"value": {"digest": world.put("answer", b"an answer")}})
    world.shelf.put_ref(P, f"stages/answers/{'b' * 64}", answers.encode())
    words = world.put_json("words", ["red", "round"])
    world.shelf.put_ref(P, "concept-sets/mine", json.dumps({"words": words}).encode())
    files = {"model.safetensors": world.put("model", b"weights of a model")}
    record = {"kind": "language_model", "files": files, "weights_digest": "c" * 64}
    world.shelf.put_ref(P, "models/mine", json.dumps(record).encode())
    return world


def _students(world: Stored, manifest: str) -> None:
    for number in (1, 2):
        weights = world.put(f"weights{number}", f"weights {number}".encode())
        card = {
            "weights": weights,
            "data": {
                "manifest": manifest,
                "teacher_shards": [world.digests["teacher"]],
                "region_shards": [world.digests["regions"]],
            },
            "fold_fits": world.put(f"folds{number}", f"folds {number}".encode()),
            "concept_embeddings": world.put("bank", b"embeddings"),
            "provenance": {"teacher_digest": "d" * 64},
        }
        world.put_json(f"card{number}", card)
    world.put_json("report", {"kind": "concept"})
    with world.store.write() as session:
        student = StudentRow(
            project=P,
            student_id="fruit",
            head=2,
            promoted=1,
            dataset="",
            teacher="",
            encoder="",
            classes_json="[]",
        )
        session.add(student)
        session.flush()
        for number in (1, 2):
            session.add(
                VersionRow(
                    student_pk=student.pk,
                    number=number,
                    weights_digest=world.digests[f"weights{number}"],
                    card_digest=world.digests[f"card{number}"],
                    report_digest=world.digests["report"] if number == 1 else "",
                )
            )
        session.add(
            JobRow(
                project=P,
                job_id="concept-1",
                state="SUCCEEDED",
                spec_json="{}",
                result_json=json.dumps({"report": world.digests["report"]}),
            )
        )
