"""Turn a source of texts into a dataset: read, check, drop duplicates, split, write shards.

Records pass through a temporary file, so that memory holds digests alone. Every choice depends on
content, so running an ingest again gives the same manifest.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO

from services.common.blobs import BlobStore
from services.common.errors import Cancelled, InvalidInput
from services.common.manifest import SPLITS
from services.common.texts import (
    SHARD_RECORDS,
    TextManifest,
    TextRecord,
    TextShardRef,
    count_fields,
    pack_records,
    unpack_records,
)
from services.gateway.datasets.entries import MAX_ITEMS, Rejected
from services.gateway.datasets.ingest import MAX_SHOWN, Options
from services.gateway.datasets.text_fields import Row
from services.gateway.datasets.text_sources import TextSource
from services.gateway.datasets.text_splits import assign_texts

_CHECK_EVERY = 200
_SPOOL_BYTES = 32 << 20


@dataclass(frozen=True)
class TextIngested:
    """The outcome of an ingest. `rejected` and `duplicates` hold the first 100; counts are
    complete."""

    manifest: TextManifest
    manifest_digest: str
    manifest_bytes: int
    rejected: tuple[Rejected, ...]
    rejected_count: int
    leaks: tuple[tuple[str, str], ...]
    """Records with the same content in two splits that the source gave."""
    leak_count: int

    @property
    def item_count(self) -> int:
        """Return the number of records."""
        return sum(shard.count for shard in self.manifest.shards)

    @property
    def split_counts(self) -> dict[str, int]:
        """Return records per split."""
        return {split: self.manifest.count(split) for split in SPLITS}


@dataclass
class _Reading:
    """What is known of the records that were read; the records themselves lie in `spool`."""

    spool: IO[bytes]
    given: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    seen: dict[tuple[bytes, str], str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)
    """The last number behind a name, so that a million equal names are not counted anew."""
    rejected: list[Rejected] = field(default_factory=list)
    rejected_count: int = 0
    keep_given: bool = False

    def reject(self, one: Rejected) -> None:
        self.rejected_count += 1
        if len(self.rejected) < MAX_SHOWN:
            self.rejected.append(one)

    def add(self, row: Row) -> None:
        """Take a record, unless it is a duplicate; a name that was there gets a number."""
        content = bytes.fromhex(replace(row.record, record_id="", split="train").digest)
        key = (content, row.split)
        if key in self.seen:
            self.reject(Rejected(row.record.record_id, f"the same record as {self.seen[key]}"))
            return
        name = self._name(row.record.record_id)
        self.seen[key] = name
        record = replace(row.record, record_id=name)
        self.spool.write(pack_records([record]))
        self.given.append(row.split)
        self.units.append(_unit(record))
        self.contents.append(content)
        self.keep_given |= row.is_own

    def _name(self, name: str) -> str:
        """Return a name that no other record has."""
        stem = name[:240]
        while name in self.names:
            self.numbers[stem] = self.numbers.get(stem, 1) + 1
            name = f"{stem}#{self.numbers[stem]}"
        self.names.add(name)
        return name


def ingest_texts(
    source: TextSource,
    blobs: BlobStore,
    project: str,
    options: Options,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stopping: Callable[[], bool] = lambda: False,
) -> TextIngested:
    """Read `source` into the blob store. Blocking.

    Raises InvalidInput where nothing usable is found, Cancelled once `stopping()` is true, and
    what the source raises.
    """
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        reading = _Reading(spool)
        for done, row in enumerate(source.rows(), start=1):
            if isinstance(row, Row):
                reading.add(row)
            else:
                reading.reject(row)
            if len(reading.given) > MAX_ITEMS:
                raise InvalidInput(f"the source holds over {MAX_ITEMS:,} records", field="source")
            if done % _CHECK_EVERY == 0:
                progress(len(reading.given), 0)
                _go_on(stopping)
        _require(reading)
        return _publish(reading, blobs, project, options, stopping)


def _go_on(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise Cancelled("the ingest was stopped")


def _require(reading: _Reading) -> None:
    if reading.given:
        return
    why = ""
    if reading.rejected:
        why = f"; for example {reading.rejected[0].path}: {reading.rejected[0].reason}"
    raise InvalidInput(
        f"no usable record among {reading.rejected_count:,} lines{why}", field="source"
    )


def _publish(
    reading: _Reading,
    blobs: BlobStore,
    project: str,
    options: Options,
    stopping: Callable[[], bool],
) -> TextIngested:
    chosen = _chosen(reading, options.max_items)
    splits = assign_texts(
        [reading.given[i] for i in chosen],
        [reading.units[i] for i in chosen],
        options.shares,
        keep_given=reading.keep_given,
    )
    split_at = dict(zip(chosen, splits, strict=True))
    shards: dict[str, list[TextShardRef]] = {split: [] for split in SPLITS}
    waiting: dict[str, list[TextRecord]] = {split: [] for split in SPLITS}
    counts: Counter[str] = Counter()

    def flush(split: str) -> None:
        _go_on(stopping)
        digest = blobs.put(project, pack_records(waiting[split]))
        shards[split].append(TextShardRef(digest, len(waiting[split]), split))
        counts.update(count_fields(waiting[split]))
        waiting[split] = []

    for at, record in enumerate(_records(reading.spool)):
        if at in split_at:
            split = split_at[at]
            waiting[split].append(replace(record, split=split))
            if len(waiting[split]) == SHARD_RECORDS:
                flush(split)
    for split in SPLITS:
        if waiting[split]:
            flush(split)
    manifest = TextManifest(tuple(s for split in SPLITS for s in shards[split]), dict(counts))
    data = manifest.to_bytes()
    leaks, leak_count = _leaks(reading)
    _go_on(stopping)
    return TextIngested(
        manifest=manifest,
        manifest_digest=blobs.put(project, data),
        manifest_bytes=len(data),
        rejected=tuple(reading.rejected),
        rejected_count=reading.rejected_count,
        leaks=leaks,
        leak_count=leak_count,
    )


def _chosen(reading: _Reading, max_items: int) -> list[int]:
    """Return the positions of the records that are used, in order: a draw by content."""
    order = range(len(reading.given))
    if not 0 < max_items < len(order):
        return list(order)
    return sorted(sorted(order, key=lambda i: (reading.contents[i], i))[:max_items])


def _records(spool: IO[bytes]) -> Iterator[TextRecord]:
    spool.seek(0)
    for line in spool:
        yield from unpack_records(line)


def _unit(record: TextRecord) -> str:
    """Return what decides a record's split: its group, else its prompt, else its text."""
    key = [record.group] if record.group else ["", record.prompt or record.text]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _leaks(reading: _Reading) -> tuple[tuple[tuple[str, str], ...], int]:
    """Return pairs of records of the same content in different splits, and how many there are."""
    first: dict[bytes, str] = {}
    pairs: list[tuple[str, str]] = []
    count = 0
    for (content, _), name in reading.seen.items():
        if content in first:
            count += 1
            if len(pairs) < MAX_SHOWN:
                pairs.append((first[content], name))
        first.setdefault(content, name)
    return tuple(pairs), count
