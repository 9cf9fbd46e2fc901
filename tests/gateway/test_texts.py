"""Text datasets: what rows mean, what files hold, how they are split, a dataset made of them."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stillhouse.gateway.v1 import datasets_pb2 as pb
from stillhouse.gateway.v1 import datasets_pb2_grpc

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.common.texts import SHARD_RECORDS, TextManifest, unpack_records
from services.gateway import paging
from services.gateway.datasets import text_files
from services.gateway.datasets.ingest import Options
from services.gateway.datasets.readers import Reading
from services.gateway.datasets.runner import IngestRunner
from services.gateway.datasets.splits import Shares
from services.gateway.datasets.text_fields import Row, Unfit, to_row
from services.gateway.datasets.text_files import read_rows
from services.gateway.datasets.text_ingest import TextIngested, ingest_texts
from services.gateway.datasets.text_sources import open_text_blob, open_text_uri
from services.gateway.datasets.text_splits import assign_texts
from services.gateway.datasets_servicer import DatasetServicer
from services.gateway.store import Store
from tests.gateway.conftest import serving


def lines(rows: list[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"text": "a"}, {"text": "a"}),
        ({"prompt": "a", "answer": 3}, {"prompt": "a", "answer": "3"}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}),
        ({"prompt": "a", "chat": True}, {"prompt": "a", "chat": True}),
        ({"instruction": "a", "input": "b", "output": "c"}, {"prompt": "a\n\nb", "answer": "c"}),
        ({"instruction": "a", "input": "", "output": "c"}, {"prompt": "a", "answer": "c"}),
        ({"input": "a", "output": "c"}, {"prompt": "a", "answer": "c"}),
        ({"question": "a", "answer": "b", "reference": "4"}, {"answer": "b", "reference": "4"}),
        ({"question": "a", "choices": ["x", "y"], "answer": "B"}, {"choice_index": 1}),
        ({"question": "a", "choices": ["x", "y"], "answer": "y"}, {"choice_index": 1}),
        ({"question": "a", "choices": ["x", "y"], "choice_index": 0}, {"choices": ("x", "y")}),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"prompt": "a", "answer": "b", "chat": True},
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, {"prompt": "a", "answer": ""}),
        ({"text": "a", "group": "g", "id": "7"}, {"group": "g", "record_id": "7"}),
        ({"text": "a", "id": "bad\n"}, {"record_id": "f:1"} | {"record_id": "bad"}),
    ],
)
def test_usual_field_names_are_understood(raw: dict[str, Any], expected: dict[str, Any]) -> None:
    record = to_row(raw, "f:1", "").record
    assert {name: getattr(record, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({}, "neither a text nor a prompt"),
        ({"text": "  "}, "neither"),
        ({"text": ["a"]}, "not text"),
        ({"text": "\ud800"}, "not valid Unicode"),
        ({"text": "a" * 1_000_001}, "characters"),
        ({"prompt": "a", "choices": ["x"]}, "two or more"),
        ({"prompt": "a", "choices": ["x", "y"]}, "which choice"),
        ({"prompt": "a", "choices": ["x", "y"], "choice_index": 2}, "out of range"),
        ({"prompt": "a", "choices": ["x", {}], "choice_index": 0}, "not text"),
        ({"prompt": "a", "choices": ["x", " "], "choice_index": 0}, "is empty"),
        ({"text": "a", "choices": ["x", "y"], "choice_index": 0}, "no prompt"),
        ({"messages": []}, "list of turns"),
        ({"messages": "hello"}, "list of turns"),
        ({"messages": [{"role": "system", "content": "a"}]}, "this one has system"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "this one has user, user"),
        ({"messages": [{"role": "user", "content": 3}]}, "no text"),
    ],
)
def test_what_is_no_record_says_why(raw: dict[str, Any], why: str) -> None:
    with pytest.raises(Unfit) as caught:
        to_row(raw, "f:1", "")
    assert why in caught.value.reason


def rows_of(name: str, data: bytes) -> tuple[list[Row], list[Any]]:
    found = list(read_rows(name, io.BytesIO(data)))
    return [r for r in found if isinstance(r, Row)], [r for r in found if not isinstance(r, Row)]


def test_bad_lines_are_rejected_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 100)
    data = b'{"text": "a"}\n\n[1]\n{"text": \n{"text": "\xff"}\n{"text": "' + b"x" * 500
    data += b'"}\n{"text": "b", "split": "validation"}'
    rows, bad = rows_of("train/data.jsonl", data)
    assert [(r.record.text, r.split, r.is_own) for r in rows] == [
        ("a", "train", False),
        ("b", "val", True),
    ]
    assert [one.path for one in bad] == [f"train/data.jsonl:{n}" for n in (3, 4, 5, 6)]
    assert ["object" in bad[0].reason, "longer" in bad[3].reason] == [True, True]


def test_deeply_nested_json_is_one_bad_line() -> None:
    rows, bad = rows_of("a.jsonl", b'{"text":' + b"[" * 200_000 + b'\n{"text":"a"}')
    assert (len(rows), len(bad)) == (1, 1)


def test_paragraphs_become_texts_of_a_bounded_length() -> None:
    words = "\n\n".join(f"paragraph {n} " + "word " * 60 for n in range(40))
    long = "x" * 9_000
    rows, bad = rows_of("a.txt", f"{words}\n\n{long}\n\nlast".encode() + b"\n\xff\n")
    texts = [row.record.text for row in rows]
    assert all(0 < len(text) <= 4_000 for text in texts)
    assert sum(text.count("paragraph") for text in texts) == 40
    assert "".join(texts).count("x") == 9_000
    assert texts[-1].endswith("last")
    assert len(bad) == 1


def test_parquet_rows_are_records() -> None:
    out = io.BytesIO()
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pq.write_table(pa.table({"messages": [turns, None], "other": [1, 2]}), out)
    rows, bad = rows_of("test-0.parquet", out.getvalue())
    assert (rows[0].record.prompt, rows[0].record.answer, rows[0].split) == ("q", "a", "test")
    assert len(bad) == 1
    with pytest.raises(InvalidInput, match="cannot be read as parquet"):
        rows_of("a.parquet", b"PAR1 nothing")
    out = io.BytesIO()
    pq.write_table(pa.table({"other": [1, 2]}), out)
    with pytest.raises(InvalidInput, match="no column of texts among other"):
        rows_of("a.parquet", out.getvalue())


def test_a_repeated_value_of_a_parquet_file_is_not_unpacked_many_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a" * 100_000] * 100}), out)
    sizes: list[int] = []
    read = pq.ParquetFile.iter_batches

    def batches(self: Any, batch_size: int, **more: Any) -> Any:
        for batch in read(self, batch_size, **more):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", batches)
    monkeypatch.setattr(text_files, "_BATCH_BYTES", 400_000)
    rows, _ = rows_of("a.parquet", out.getvalue())
    assert len(rows) == 100
    assert max(sizes) < 600_000


def test_splits_keep_units_together_and_meet_their_shares() -> None:
    units = [f"{n // 4:04x}" for n in range(400)]
    splits = assign_texts([""] * 400, units, Shares(0.2, 0.1), keep_given=False)
    assert (splits.count("test"), splits.count("val")) == (80, 40)
    for at in range(0, 400, 4):
        assert len(set(splits[at : at + 4])) == 1
    assert assign_texts([""] * 400, units, Shares(0.2, 0.1), keep_given=False) == splits


def test_given_splits_stay() -> None:
    shares = Shares(0.2, 0.1)
    given = ["train", "val", "", "train"]
    assert assign_texts(given, ["a", "b", "b", "c"], shares, keep_given=False) == [
        "train",
        "test",
        "test",
        "train",
    ]
    assert assign_texts(["test"] * 3, list("abc"), shares, keep_given=True) == ["test"] * 3
    assert set(assign_texts(["test"] * 9, list("abcdefghi"), shares, keep_given=False)) == {
        "train",
        "val",
        "test",
    }
    assert assign_texts(["", ""], ["a", "b"], shares, keep_given=False) == ["train", "train"]


def ingested(reading: Reading, path: Path | str, options: Options | None = None) -> TextIngested:
    source = open_text_uri(str(path), reading)
    return ingest_texts(source, reading.blobs, "p", options or Options())


def all_records(blobs: BlobStore, found: TextIngested) -> list[Any]:
    return [r for s in found.manifest.shards for r in unpack_records(blobs.get("p", s.digest))]


def test_a_dataset_is_the_same_on_every_run(reading: Reading, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "answer": "a", "group": f"g{n % 50}"} for n in range(500)]
    rows += [rows[0], {"text": ""}]
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines(rows))
    first, again = ingested(reading, path), ingested(reading, path)
    assert first.manifest_digest == again.manifest_digest
    assert (first.item_count, first.rejected_count) == (500, 2)
    assert "the same record as" in first.rejected[0].reason
    assert first.manifest.field_counts == {"prompt": 500, "answer": 500}
    records = all_records(reading.blobs, first)
    home: dict[str, str] = {}
    assert all(home.setdefault(r.group, r.split) == r.split for r in records)
    assert first.split_counts == {"train": 350, "val": 50, "test": 100}
    assert max(shard.count for shard in first.manifest.shards) == SHARD_RECORDS
    small = ingested(reading, path, Options(max_items=20))
    assert small.item_count == 20


def test_names_that_occur_twice_get_a_number(reading: Reading, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines([{"text": t, "id": "same", "split": "train"} for t in "abc"]))
    found = all_records(reading.blobs, ingested(reading, path))
    assert [(r.record_id, r.split) for r in found] == [
        ("same", "train"),
        ("same#2", "train"),
        ("same#3", "train"),
    ]


def test_the_same_record_in_two_splits_is_told(reading: Reading, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines([{"text": "a", "id": s, "split": s} for s in ("train", "test")]))
    found = ingested(reading, path)
    assert (found.leaks, found.leak_count) == ((("train", "test"),), 1)


def test_folders_and_archives_of_files(reading: Reading, tmp_path: Path) -> None:
    files = {
        "train/a.jsonl": lines([{"text": f"a{n}"} for n in range(5)]),
        "test/b.txt": b"one\n\ntwo",
        "test/notes.md": b"ignored",
        ".hidden/c.jsonl": b"{}",
    }
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["p"]}), out)
    files["train/p.parquet"] = out.getvalue()
    folder = tmp_path / "folder"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(name, files[name])
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    digests = {
        ingested(reading, tmp_path / name).manifest_digest for name in ("folder", "a.zip", "a.tgz")
    }
    assert len(digests) == 1
    found = ingested(reading, folder)
    assert found.split_counts == {"train": 6, "val": 0, "test": 1}
    blob = reading.blobs.put("p", (tmp_path / "a.zip").read_bytes())
    uploaded = ingest_texts(open_text_blob("p", blob, reading), reading.blobs, "p", Options())
    assert uploaded.manifest_digest == found.manifest_digest


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a.png": b"x"}, "no text file"),
        ({"a.jsonl": b"{}\n[]\n"}, "no usable record among 2 lines; for example a.jsonl:1"),
        ({"a.jsonl": b""}, "no usable record among 0 lines"),
    ],
)
def test_a_source_without_texts_is_refused(
    files: dict[str, bytes], why: str, reading: Reading, tmp_path: Path
) -> None:
    for name, data in files.items():
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / name).write_bytes(data)
    with pytest.raises(InvalidInput, match=why):
        ingested(reading, tmp_path / "f")
    (tmp_path / "a.pdf").touch()
    with pytest.raises(InvalidInput, match="texts are read from"):
        ingested(reading, tmp_path / "a.pdf")


@pytest.fixture
async def stub(store: Store, reading: Reading) -> AsyncIterator[Any]:
    runner = IngestRunner(store, reading)
    servicer = DatasetServicer(store, reading, runner, max_archive_bytes=1 << 20)

    def register(server: grpc.aio.Server) -> None:
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(servicer, server)

    async with serving(register) as channel:
        yield datasets_pb2_grpc.DatasetServiceStub(channel)
        await runner.stop()


async def ready(stub: Any, request: pb.CreateDatasetRequest) -> pb.Dataset:
    name = (await stub.CreateDataset(request)).dataset.name
    while True:
        found = (await stub.GetDataset(pb.GetDatasetRequest(name=name))).dataset
        if found.state != pb.DATASET_STATE_CREATING:
            return found
        await asyncio.sleep(0.02)


async def test_an_uploaded_file_becomes_a_dataset_of_texts(
    stub: Any, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"q{n}", "choices": ["x", "y"], "choice_index": n % 2} for n in range(300)]
    chunks = [pb.UploadArchiveRequest(project="p", chunk=lines(rows))]
    archive = (await stub.UploadArchive(iter(chunks))).archive
    request = pb.CreateDatasetRequest(
        project="p", dataset_id="quiz", archive=archive, kind=pb.DATASET_KIND_TEXTS
    )
    found = await ready(stub, request)
    assert found.state == pb.DATASET_STATE_READY, found.error
    assert found.kind == pb.DATASET_KIND_TEXTS
    assert dict(found.field_counts) == {"prompt": 300, "choices": 300}
    assert dict(found.split_counts) == {"train": 210, "val": 30, "test": 60}
    manifest = TextManifest.from_bytes(blobs.get("p", found.manifest.digest))
    assert manifest.count("train") == 210
    seen = await listed(stub, found, page_size=47)
    assert len(seen) == len(set(seen)) == 210
    monkeypatch.setattr(paging, "MAX_BYTES", 500)  # ends pages of 47 early
    assert await listed(stub, found, page_size=47) == seen
    as_images = pb.CreateDatasetRequest(project="p", dataset_id="wrong", archive=archive)
    failed = await ready(stub, as_images)
    assert "neither zip nor tar" in failed.error.message
    assert failed.kind == pb.DATASET_KIND_IMAGES
    correct = pb.CorrectLabelsRequest(dataset=found.name, dataset_id="other")
    with pytest.raises(grpc.aio.AioRpcError, match="holds texts"):
        await stub.CorrectLabels(correct)


async def listed(stub: Any, found: pb.Dataset, *, page_size: int) -> list[str]:
    """The ids of all records to train on, page by page."""
    seen: list[str] = []
    token = ""
    while True:
        page = await stub.ListDatasetItems(
            pb.ListDatasetItemsRequest(
                dataset=found.name, split="train", page_size=page_size, page_token=token
            )
        )
        seen += [item.item_id for item in page.items]
        assert {item.split for item in page.items} == {"train"}
        assert list(page.items[0].text.choices) == ["x", "y"]
        if not (token := page.next_page_token):
            return seen
