"""Runs ingests in the background and takes up those that a stopped gateway left unfinished."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from urllib.parse import parse_qsl

from google.protobuf import json_format
from google.rpc import status_pb2
from stillhouse.gateway.v1 import datasets_pb2 as pb

from services.common import images, logs
from services.common.errors import (
    Cancelled,
    Internal,
    InvalidInput,
    NotFound,
    PeerUnavailable,
    StillhouseError,
)
from services.gateway.datasets import records
from services.gateway.datasets.entries import Source, shown
from services.gateway.datasets.ingest import Ingested, Options, Verdicts, ingest
from services.gateway.datasets.readers import Reading, open_archive, open_uri
from services.gateway.datasets.splits import Shares
from services.gateway.datasets.text_ingest import TextIngested, ingest_texts
from services.gateway.datasets.text_sources import TextSource, open_text_blob, open_text_uri
from services.gateway.outages import DatabaseAway
from services.gateway.store import Store

_PROGRESS_S = 0.5
_AWAY_S = 1.0
_log = logs.get(__name__)
Launch = Callable[[int], None]


class IngestRunner:
    """Ingests datasets off the event loop, `at_once` at a time.

    `run_ingest` is idempotent: on a dataset that is READY or FAILED it does nothing, and a second
    run
    beside a first one ends with the same manifest. So a workflow engine may wrap it, in which case
    set `launch` to what starts that workflow; without one, ingests are tasks of this process and
    `resume` starts the unfinished ones again.
    """

    def __init__(
        self, store: Store, reading: Reading, *, max_pixels: int = 64_000_000, at_once: int = 2
    ) -> None:
        self._store = store
        self._stopping = threading.Event()
        self._reading = replace(reading, stopping=self._stopping.is_set)
        self._limits = images.Limits(max_bytes=reading.max_image_bytes, max_pixels=max_pixels)
        self._pool = ThreadPoolExecutor(at_once, "ingest-main")
        self._verdicts = Verdicts()
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(
            partial(asyncio.Semaphore, max(1, at_once - 1))
        )
        """By project: one is always free for others, however slow a source is."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.launch: Launch = self._start_task

    async def run_ingest(self, dataset_pk: int) -> None:
        """Read a CREATING dataset to its end: READY, or FAILED with the reason in its row."""
        try:
            project = (await asyncio.to_thread(records.by_pk, self._store, dataset_pk)).project
        except NotFound:  # its project was deleted in the meantime
            return
        except DatabaseAway:
            project = ""
        async with self._turns[project]:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._run, dataset_pk)

    async def resume(self) -> None:
        """Launch every ingest that is unfinished. Call once at start."""
        for pk in await asyncio.to_thread(records.unfinished, self._store):
            self.launch(pk)

    def interrupt(self) -> None:
        """Let what runs here end at its next image; its datasets stay CREATING."""
        self._stopping.set()

    async def stop(self) -> None:
        """Interrupt what runs here, and wait for it; the next start takes it up again."""
        self.interrupt()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start_task(self, dataset_pk: int) -> None:
        task = asyncio.get_running_loop().create_task(self.run_ingest(dataset_pk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self, pk: int) -> None:
        """Ingest a dataset, again from its start where the database was away meanwhile."""
        while not self._stopping.is_set():
            try:
                self._attempt(pk)
                break
            except DatabaseAway:
                _log.warning("waiting for the database", dataset_pk=pk)
                self._stopping.wait(_AWAY_S)

    def _attempt(self, pk: int) -> None:
        try:
            row = records.by_pk(self._store, pk)
        except NotFound:  # its project was deleted before it was this one's turn
            return
        if row.state != "CREATING":
            return
        request = json_format.Parse(row.source_json, pb.CreateDatasetRequest())
        try:
            ingested = self._ingest(pk, request)
        except Cancelled:
            return
        except DatabaseAway:
            raise
        except StillhouseError as error:
            records.fail(self._store, pk, error.to_status())
        except OSError as error:
            away = PeerUnavailable(f"the source cannot be read: {shown(str(error))}")
            records.fail(self._store, pk, away.to_status())
        except Exception as error:  # a bug must end as a FAILED dataset, not as one that never ends
            _log.error("ingest failed", dataset=records.name_of(row), exc_info=error)
            records.fail(self._store, pk, _internal(records.name_of(row)))
        else:
            records.finish(self._store, pk, ingested)
            _log.info("dataset ready", dataset=records.name_of(row))

    def _ingest(self, pk: int, request: pb.CreateDatasetRequest) -> Ingested | TextIngested:
        looked_s, read = time.monotonic(), 0

        def progress(done: int, _: int) -> None:
            nonlocal read
            read = done

        def stopping() -> bool:
            """Say how far we are, and with that look whether the dataset is still wanted."""
            nonlocal looked_s
            if time.monotonic() - looked_s > _PROGRESS_S:
                looked_s = time.monotonic()
                records.set_progress(self._store, pk, read)
            return self._stopping.is_set()

        if request.kind == pb.DATASET_KIND_TEXTS:
            return ingest_texts(
                self._open_texts(request),
                self._reading.blobs,
                request.project,
                options_of(request),
                progress=progress,
                stopping=stopping,
            )
        return ingest(
            self._open(request),
            self._reading.blobs,
            request.project,
            options_of(request),
            limits=self._limits,
            verdicts=self._verdicts,
            progress=progress,
            stopping=stopping,
        )

    def _open(self, request: pb.CreateDatasetRequest) -> Source:
        if request.WhichOneof("source") == "archive":
            return open_archive(request.project, request.archive.digest, self._reading)
        return open_uri(request.uri, self._reading)

    def _open_texts(self, request: pb.CreateDatasetRequest) -> TextSource:
        if request.WhichOneof("source") == "archive":
            return open_text_blob(request.project, request.archive.digest, self._reading)
        return open_text_uri(request.uri, self._reading)


def options_of(request: pb.CreateDatasetRequest) -> Options:
    """Return a request's options, checked. `builtin:NAME?max=60` is another way to say
    max_items."""
    test, val = request.test_share or Shares.test, request.val_share or Shares.val
    if not (0 <= test < 1 and 0 <= val < 1 and test + val < 1):
        raise InvalidInput(
            "test_share, val_share: must be 0 or more, and less than 1 together", field="test_share"
        )
    if request.max_items < 0:
        raise InvalidInput("max_items: must not be negative", field="max_items")
    if request.kind not in pb.DatasetKind.values():
        raise InvalidInput("kind: is none of DatasetKind", field="kind")
    limit = request.max_items
    if request.uri.startswith("builtin:"):
        limit = limit or _max_of(request.uri.partition("?")[2])
    return Options(Shares(test, val), limit)


def _max_of(query: str) -> int:
    options = dict(parse_qsl(query))
    value = options.pop("max", "0")
    if set(options) - {"facts"} or not value.isdecimal():
        raise InvalidInput(
            "uri: a built-in dataset takes `?max=NUMBER`, and `facts=NUMBER` for wordnet",
            field="uri",
        )
    return int(value)


def _internal(name: str) -> status_pb2.Status:
    return Internal(f"internal error while reading {name}; see the gateway's log").to_status()
