"""The ways in which fsck mends a blob."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf import json_format
from sqlalchemy import select
from stillhouse.gateway.v1 import datasets_pb2 as pb

from services.common.errors import NotFound, StillhouseError
from services.common.names import parse
from services.common.shelf import Shelf
from services.gateway.datasets.ingest import ingest
from services.gateway.datasets.readers import Reading, open_archive, open_uri
from services.gateway.datasets.runner import options_of
from services.gateway.datasets.text_ingest import ingest_texts
from services.gateway.datasets.text_sources import open_text_blob, open_text_uri
from services.gateway.keeping.graph import Link
from services.gateway.store import DatasetRow, Store


@dataclass
class FromBackup:
    """Takes a blob from a backup, or from another blob store."""

    source: Shelf
    shelf: Shelf

    def __call__(self, project: str, digest: str, links: list[Link]) -> str:
        try:
            with self.source.open(project, digest) as stream:
                self.shelf.put_file(project, stream)
        except NotFound:
            return ""
        return "restored from the backup"


@dataclass
class FromSource:
    """Reads a dataset again from where it came from: the catalogue, an uploaded archive, a URI.

    The same source gives the same images, shards and manifest, so what was lost comes back under
    its digest. Each dataset is read once.
    """

    store: Store
    reading: Reading
    _tried: set[str] = field(default_factory=set)

    def __call__(self, project: str, digest: str, links: list[Link]) -> str:
        owners = {link.owner for link in links if "/datasets/" in link.owner}
        for owner in sorted(owners - self._tried):
            self._tried.add(owner)
            self._read(project, owner)
        is_there = bool(owners) and self.reading.blobs.exists(project, digest)
        return "read again from the dataset's source" if is_there else ""

    def _read(self, project: str, owner: str) -> None:
        try:
            request = json_format.Parse(
                self._row(project, owner).source_json,
                pb.CreateDatasetRequest(),
                ignore_unknown_fields=True,
            )
            self._ingest(project, request)
        except (StillhouseError, OSError, json_format.ParseError):
            return  # the source has gone, or the dataset is a corrected one, which has none

    def _ingest(self, project: str, request: pb.CreateDatasetRequest) -> None:
        reading, options = self.reading, options_of(request)
        is_archive = request.WhichOneof("source") == "archive"
        digest = request.archive.digest
        if request.kind == pb.DATASET_KIND_TEXTS:
            texts = (
                open_text_blob(project, digest, reading)
                if is_archive
                else open_text_uri(request.uri, reading)
            )
            ingest_texts(texts, reading.blobs, project, options)
            return
        images = (
            open_archive(project, digest, reading) if is_archive else open_uri(request.uri, reading)
        )
        ingest(images, reading.blobs, project, options)

    def _row(self, project: str, owner: str) -> DatasetRow:
        _, dataset_id = parse(owner, "datasets", field="dataset")
        query = select(DatasetRow).where(
            DatasetRow.project == project, DatasetRow.dataset_id == dataset_id
        )
        with self.store.read() as session:
            return session.scalars(query).one()


@dataclass
class ForgetStage:
    """Forgets a stage's output, so that whoever needs it next computes it again."""

    shelf: Shelf

    def __call__(self, project: str, digest: str, links: list[Link]) -> str:
        stages = {link.owner for link in links if link.is_stage}
        for owner in stages:
            self.shelf.remove_ref(project, owner.removeprefix("refs/"))
        if stages and all(link.is_stage for link in links):
            return "forgotten: it is computed again where a job needs it"
        return ""
