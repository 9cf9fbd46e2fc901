"""Text datasets: records in JSON-line shards, named by an immutable manifest.

A record is a plain `text`, or a `prompt` with what belongs to it: an `answer` to learn word for
word, a `reference` for a verifier, or `choices` of which one is right. Shards hold records of one
split; a shard's bytes are canonical, so equal records give an equal digest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from services.common.blobs import digest_of
from services.common.documents import MALFORMED
from services.common.errors import InvalidInput
from services.common.manifest import SPLITS

SHARD_RECORDS = 128
MAX_TEXT_CHARS = 1_000_000
MAX_CHOICES = 64
_KIND = "texts"


@dataclass(frozen=True)
class TextRecord:
    """One record; fields it lacks are empty. `choice_index` counts only where there are
    `choices`."""

    record_id: str
    split: str = "train"
    text: str = ""
    prompt: str = ""
    answer: str = ""
    reference: str = ""
    choices: tuple[str, ...] = ()
    choice_index: int = 0
    group: str = ""
    """Records about the same thing: intervals are drawn over groups."""
    chat: bool = False
    """The prompt is a user turn of the model's chat template."""

    @property
    def digest(self) -> str:
        """SHA-256 of the record's canonical JSON."""
        return digest_of(_line(self))

    def check(self) -> None:
        """Raise InvalidInput where the record is not one."""
        texts: tuple[str, ...] = (self.record_id, self.split, self.text, self.prompt, self.answer)
        texts += (self.reference, self.group, *self.choices)
        if not all(isinstance(one, str) for one in texts) or type(self.choice_index) is not int:
            raise InvalidInput("a record's fields are text", field="records")
        where = f"record {self.record_id[:100]!r}"
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:  # a lone surrogate, which JSON can name
            raise InvalidInput(f"{where}: not valid Unicode", field="records") from None
        if self.split not in SPLITS:
            raise InvalidInput(f"{where}: split {self.split[:20]!r}", field="split")
        if bool(self.text) == bool(self.prompt):
            raise InvalidInput(f"{where}: needs either text or prompt", field="text")
        if len(self.choices) > MAX_CHOICES:
            raise InvalidInput(f"{where}: more than {MAX_CHOICES} choices", field="choices")
        if self.choices and not 0 <= self.choice_index < len(self.choices):
            raise InvalidInput(f"{where}: choice_index is out of range", field="choice_index")
        parts = (self.text, self.prompt, self.answer, self.reference, *self.choices)
        if sum(map(len, parts)) > MAX_TEXT_CHARS:
            raise InvalidInput(f"{where}: over {MAX_TEXT_CHARS:,} characters", field="text")


_FIELDS = {field.name for field in fields(TextRecord)}
_COUNTED = ("text", "prompt", "answer", "reference", "choices", "chat")


def pack_records(records: Iterable[TextRecord]) -> bytes:
    """Return canonical JSON lines; fields with their default are left out."""
    return b"".join(_line(record) + b"\n" for record in records)


def unpack_records(data: bytes) -> list[TextRecord]:
    """Return the records of a shard. Raises InvalidInput where a line is not one."""
    return [_record(line, at) for at, line in enumerate(data.splitlines()) if line.strip()]


@dataclass(frozen=True)
class TextShardRef:
    """A shard: its blob, and how many records of which split it holds."""

    digest: str
    count: int
    split: str


@dataclass(frozen=True)
class TextManifest:
    """The shards of a text dataset, split by split, and how many records have which field."""

    shards: tuple[TextShardRef, ...]
    field_counts: dict[str, int]

    def of(self, split: str) -> list[TextShardRef]:
        """Shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def count(self, split: str) -> int:
        """Records of one split."""
        return sum(shard.count for shard in self.of(split))

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        raw = {"kind": _KIND, "shards": [asdict(s) for s in self.shards]}
        return _dump(raw | {"field_counts": self.field_counts})

    @classmethod
    def from_bytes(cls, data: bytes) -> TextManifest:
        """Return the manifest of `data`. Raises InvalidInput where it is not one of texts."""
        try:
            raw = json.loads(data)
            if raw.get("kind") != _KIND:
                raise InvalidInput("the dataset holds images, not texts", field="dataset")
            shards = tuple(
                TextShardRef(str(s["digest"]), int(s["count"]), str(s["split"]))
                for s in raw["shards"]
            )
            return cls(shards, {str(k): int(v) for k, v in raw["field_counts"].items()})
        except MALFORMED as error:
            raise InvalidInput(f"manifest is not valid: {error!r}"[:300]) from None


def shards_of(records: Sequence[TextRecord]) -> list[tuple[str, Sequence[TextRecord]]]:
    """Return (split, records) of each shard, in the order of SPLITS."""
    found: list[tuple[str, Sequence[TextRecord]]] = []
    for split in SPLITS:
        mine = [record for record in records if record.split == split]
        found += [
            (split, mine[at : at + SHARD_RECORDS]) for at in range(0, len(mine), SHARD_RECORDS)
        ]
    return found


def count_fields(records: Iterable[TextRecord]) -> dict[str, int]:
    """Return how many records have each field."""
    return dict(Counter(n for r in records for n in _COUNTED if getattr(r, n)))


def _line(record: TextRecord) -> bytes:
    default = TextRecord(record.record_id)
    raw = {k: v for k, v in asdict(record).items() if v != getattr(default, k)}
    return _dump(raw | {"record_id": record.record_id})


def _dump(raw: object) -> bytes:
    return json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _record(line: bytes, at: int) -> TextRecord:
    try:
        raw = json.loads(line)
        if not isinstance(raw, dict) or not set(raw) <= _FIELDS:
            raise ValueError("not a record")
        raw["choices"] = tuple(str(one) for one in raw.get("choices", ()))
        record = TextRecord(**raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(f"line {at + 1}: {error}"[:200], field="records") from None
    record.check()
    return record
