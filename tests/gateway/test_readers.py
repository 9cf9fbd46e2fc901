"""Readers: layouts of folders and archives, parquet, hostile archives, allowed URIs."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.common.errors import InvalidInput, NotFound, Precondition, StillhouseError
from services.common.outbound import Addresses
from services.gateway.datasets import trees
from services.gateway.datasets.entries import Listing, Rejected
from services.gateway.datasets.readers import Reading, UriPolicy, check_uri, open_archive, open_uri
from services.gateway.datasets.trees import ZipTree, archive_tree
from tests.common.test_outbound import web
from tests.gateway.conftest import make_photo

Files = Mapping[str, bytes]


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_zip(root: Path, files: Files) -> Path:
    path = root / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(root: Path, files: Files, mode: str = "w:gz") -> Path:
    path = root / "set.tar"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


WRITERS: dict[str, Callable[[Path, Files], Path]] = {
    "folder": lambda root, files: write_folder(root / "set", files),
    "zip": write_zip,
    "tar": lambda root, files: write_tar(root, files, "w"),
    "tar.gz": lambda root, files: write_tar(root, files, "w:gz"),
    "tar.bz2": lambda root, files: write_tar(root, files, "w:bz2"),
    "tar.xz": lambda root, files: write_tar(root, files, "w:xz"),
}


def listing(reading: Reading, path: Path | str) -> Listing:
    return open_uri(str(path), reading).listing()


def labels_of(found: Listing) -> dict[str, tuple[str, ...]]:
    return {entry.item_id: entry.labels for entry in found.entries}


def splits_of(found: Listing) -> dict[str, str]:
    return {entry.item_id: entry.split for entry in found.entries}


@pytest.mark.parametrize("kind", WRITERS)
def test_class_folders_in_every_container(kind: str, tmp_path: Path, reading: Reading) -> None:
    files = {f"rose/{n}.jpg": make_photo(n) for n in range(3)}
    files |= {f"tulip/sub/{n}.PNG": make_photo(9 + n, kind="PNG") for n in range(2)}
    files |= {"readme.txt": b"hello", ".DS_Store": b"x", "__MACOSX/rose/._0.jpg": b"x"}
    source = open_uri(str(WRITERS[kind](tmp_path, files)), reading)
    found = source.listing()
    assert {one.labels for one in found.entries} == {("rose",), ("tulip",)}
    assert [one.path for one in found.rejected] == ["readme.txt"]
    wanted = {one.item_id for one in found.entries}
    read = dict(source.read(wanted))
    assert read == {name: files[name] for name in wanted}


def test_a_folder_of_a_remote_file_system(reading: Reading) -> None:
    files = {f"{label}/{n}.jpg": make_photo(n) for n in range(20) for label in "ab"}
    remote = fsspec.filesystem("memory")
    for name, data in files.items():
        remote.pipe_file(f"/bucket/set/{name}", data)
    remote.pipe_file("/bucket/set/b/large.jpg", b"x" * (2 << 20))
    source = open_uri("memory://bucket/set", reading)
    wanted = [entry.item_id for entry in source.listing().entries]
    read = dict(source.read(wanted))
    assert isinstance(read.pop("b/large.jpg"), Rejected)
    assert read == files
    remote.rm("/bucket", recursive=True)


def test_a_file_that_has_gone_is_rejected(tmp_path: Path, reading: Reading) -> None:
    write_folder(tmp_path / "s", {"a/1.jpg": b"x", "b/1.jpg": b"y"})
    source = open_uri(str(tmp_path / "s"), reading)
    (tmp_path / "s" / "a" / "1.jpg").unlink()
    read = dict(source.read(["a/1.jpg", "b/1.jpg"]))
    assert isinstance(read["a/1.jpg"], Rejected)
    assert read["b/1.jpg"] == b"y"


def test_splits_above_the_classes(tmp_path: Path, reading: Reading) -> None:
    names = [
        "Train/a/1.jpg",
        "train/b/1.jpg",
        "validation/a/2.jpg",
        "test/b/3.jpg",
        "extra/a/9.jpg",
    ]
    write_folder(tmp_path / "s", {name: b"x" for name in names})
    found = listing(reading, tmp_path / "s")
    assert splits_of(found) == dict(zip(names[:4], ["train", "train", "val", "test"], strict=True))
    assert [one.path for one in found.rejected] == ["extra/a/9.jpg"]


def test_folders_around_all_images_are_no_class(tmp_path: Path, reading: Reading) -> None:
    files = {name: b"x" for name in ("set/v1/a/1.jpg", "set/v1/b/1.jpg", "set/v1/stray.jpg")}
    found = listing(reading, write_zip(tmp_path, files))
    assert labels_of(found) == {"set/v1/a/1.jpg": ("a",), "set/v1/b/1.jpg": ("b",)}
    assert [one.path for one in found.rejected] == ["set/v1/stray.jpg"]


def test_a_class_name_typed_on_two_systems_is_one_class(tmp_path: Path, reading: Reading) -> None:
    composed, split_up = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    files = {f"{composed}/1.jpg": b"x", f"{split_up}/2.jpg": b"x", "梨 🍐/3.jpg": b"x"}
    found = listing(reading, write_zip(tmp_path, files))
    assert {one.labels for one in found.entries} == {(composed,), ("梨 🍐",)}


def test_names_that_are_not_text_are_refused(tmp_path: Path, reading: Reading) -> None:
    path = write_tar(tmp_path, {"a/ok.jpg": b"x", "a/bad\n.jpg": b"x", f"b/{'n' * 300}.jpg": b"x"})
    found = listing(reading, path)
    assert list(labels_of(found)) == ["a/ok.jpg"]
    assert len(found.rejected) == 2


def test_a_label_table_beside_images(tmp_path: Path, reading: Reading) -> None:
    table = "file_name,label,split\n1.jpg,red,train\n2.jpg,blue,test\n3.jpg,red,\ngone.jpg,red,\n"
    files = {
        "img/1.jpg": b"x",
        "img/2.jpg": b"x",
        "img/3.jpg": b"x",
        "img/labels.csv": table.encode(),
    }
    for uri in (write_folder(tmp_path / "s", files), tmp_path / "s" / "img" / "labels.csv"):
        found = listing(reading, uri)
        assert [one.labels for one in found.entries] == [("red",), ("blue",), ("red",)]
        assert [one.split for one in found.entries] == ["train", "test", ""]
        assert not found.multi_label
        assert [one.reason for one in found.rejected] == ["there is no such image"]


def test_a_jsonl_table_with_lists_is_multi_label(tmp_path: Path, reading: Reading) -> None:
    rows = [{"file": "1.jpg", "labels": ["a", "b"]}, {"file": "2.jpg", "labels": []}]
    text = "\n".join(map(json.dumps, rows)).encode()
    found = listing(
        reading, write_zip(tmp_path, {"1.jpg": b"x", "2.jpg": b"x", "metadata.jsonl": text})
    )
    assert found.multi_label
    assert labels_of(found) == {"1.jpg": ("a", "b"), "2.jpg": ()}


def coco_document(first: int = 0) -> bytes:
    return json.dumps(
        {
            "images": [{"id": first + n, "file_name": f"{first + n}.jpg"} for n in range(3)],
            "annotations": [
                {"image_id": first, "category_id": 7, "bbox": [0, 0, 1, 1]},
                {"image_id": first, "category_id": 7},
                {"image_id": first, "category_id": 3},
                {"image_id": first + 1, "category_id": 3},
            ],
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        }
    ).encode()


def test_coco_is_multi_label_with_a_split_per_document(tmp_path: Path, reading: Reading) -> None:
    files = {f"train2017/{n}.jpg": b"x" for n in range(3)}
    files |= {f"val2017/{n}.jpg": b"x" for n in range(10, 12)}
    files |= {
        "annotations/instances_train2017.json": coco_document(),
        "annotations/instances_val2017.json": coco_document(10),
        "annotations/licences.json": b"[]",
    }
    found = listing(reading, write_folder(tmp_path / "s", files))
    assert found.multi_label
    assert found.classes == ("cat", "dog")
    assert labels_of(found)["train2017/0.jpg"] == ("dog", "cat")
    assert labels_of(found)["val2017/11.jpg"] == ("cat",)
    assert splits_of(found)["train2017/2.jpg"] == "train"
    assert splits_of(found)["val2017/10.jpg"] == "val"
    assert [one.path for one in found.rejected] == ["12.jpg"]


def test_a_coco_file_named_by_uri(tmp_path: Path, reading: Reading) -> None:
    files = {f"images/{n}.jpg": b"x" for n in range(3)} | {"labels.json": coco_document()}
    write_folder(tmp_path / "s", files)
    found = listing(reading, tmp_path / "s" / "labels.json")
    assert len(found.entries) == 3


@pytest.mark.parametrize("text", [b"{", b'{"images": 3}', b"[" * 100_000])
def test_a_damaged_coco_file_is_an_error(text: bytes, tmp_path: Path, reading: Reading) -> None:
    write_folder(tmp_path / "s", {"x.json": text, "1.jpg": b"x"})
    with pytest.raises(InvalidInput):
        listing(reading, tmp_path / "s" / "x.json")


def voc_xml(name: str, *labels: str) -> bytes:
    objects = "".join(f"<object><name>{label}</name></object>" for label in labels)
    return f"<annotation><filename>{name}</filename>{objects}</annotation>".encode()


def test_voc(tmp_path: Path, reading: Reading) -> None:
    root = "VOCdevkit/VOC2007/"
    files = {f"{root}JPEGImages/{n}.jpg": b"x" for n in (1, 2)}
    files |= {
        f"{root}Annotations/1.xml": voc_xml("1.jpg", "dog", "dog", "cat"),
        f"{root}Annotations/2.xml": voc_xml("", "cat"),
        f"{root}Annotations/3.xml": b"<annotation>",
        f"{root}ImageSets/Main/train.txt": b"1\n",
        f"{root}ImageSets/Main/test.txt": b"2 -1\n",
        f"{root}ImageSets/Main/dog_test.txt": b"1 1\n",
    }
    found = listing(reading, write_tar(tmp_path, files))
    assert found.multi_label
    assert labels_of(found) == {
        f"{root}JPEGImages/1.jpg": ("dog", "cat"),
        f"{root}JPEGImages/2.jpg": ("cat",),
    }
    assert list(splits_of(found).values()) == ["train", "test"]
    assert [one.path for one in found.rejected] == [f"{root}Annotations/3.xml"]


BOMB = """<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY c "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&c;</filename></annotation>"""
OUTSIDE = '<!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'


@pytest.mark.parametrize("xml", [BOMB.encode(), BOMB.encode("utf-16"), OUTSIDE.encode()])
def test_voc_declarations_are_refused(xml: bytes, tmp_path: Path, reading: Reading) -> None:
    files = {"Annotations/1.xml": xml, "JPEGImages/1.jpg": b"x"}
    found = listing(reading, write_zip(tmp_path, files))
    assert found.entries == []
    assert "document type" in found.rejected[0].reason


def write_parquet(path: Path, columns: dict[str, object], names: list[str] | None = None) -> Path:
    table = pa.table(columns)
    if names:
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        meta = {b"huggingface": json.dumps({"info": {"features": feature}}).encode()}
        table = table.replace_schema_metadata(meta)
    pq.write_table(table, path)
    return path


def test_parquet_as_the_hub_writes_it(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, seeds in (("train", [1, 2, 3]), ("test", [4, 5])):
        images = [{"bytes": make_photo(n), "path": None} for n in seeds]
        path = tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, {"image": images, "label": [n % 2 for n in seeds]}, ["even", "odd"])
    source = open_uri(f"file://{tmp_path}/set", reading)
    found = source.listing()
    assert found.classes == ("even", "odd")
    assert [one.split for one in found.entries] == ["test"] * 2 + ["train"] * 3
    assert [one.labels[0] for one in found.entries] == ["even", "odd", "odd", "even", "odd"]
    name = "train-00000-of-00001/0000001"
    assert dict(source.read({name})) == {name: make_photo(2)}


def test_parquet_with_plain_columns_and_rows_without_image(
    tmp_path: Path, reading: Reading
) -> None:
    columns = {
        "image_data": pa.array([make_photo(1), None, b"x" * (2 << 20)], pa.binary()),
        "kind": ["a", "b", "a"],
        "split": ["train", "validation", "odd"],
    }
    path = write_parquet(tmp_path / "x.parquet", columns)
    with pytest.raises(InvalidInput, match="#label=COLUMN"):
        listing(reading, path)
    source = open_uri(f"{path}#label=kind", reading)
    assert [one.split for one in source.listing().entries] == ["train", "val", ""]
    read = dict(source.read({f"x/000000{n}" for n in range(3)}))
    assert read["x/0000000"] == make_photo(1)
    assert [type(one) for one in read.values()] == [bytes, Rejected, Rejected]


def test_parquet_with_lists_is_multi_label(tmp_path: Path, reading: Reading) -> None:
    columns = {"image": [make_photo(1), make_photo(2)], "labels": [["a", "b"], []]}
    found = listing(reading, write_parquet(tmp_path / "x.parquet", columns))
    assert found.multi_label
    assert [one.labels for one in found.entries] == [("a", "b"), ()]


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    with pytest.raises(InvalidInput, match="parquet"):
        listing(reading, path)


HOSTILE = ["../../evil.jpg", "/etc/evil.jpg", "a/../../b.jpg", "..\\evil.jpg", "C:/evil.jpg"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_refused(kind: str, tmp_path: Path, reading: Reading) -> None:
    files = {name: make_photo() for name in [*HOSTILE, "a/ok.jpg", "b/ok.jpg"]}
    found = listing(reading, WRITERS[kind](tmp_path, files))
    assert sorted(labels_of(found)) == ["a/ok.jpg", "b/ok.jpg"]
    assert {one.path for one in found.rejected} == set(HOSTILE)


def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("a/s.jpg", tarfile.SYMTYPE),
            ("a/h.jpg", tarfile.LNKTYPE),
            ("a/d.jpg", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    found = listing(reading, path)
    assert found.entries == []
    assert {one.reason for one in found.rejected} == {"a link or a device"}


def test_a_link_in_a_zip_is_refused(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a/s.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert [one.reason for one in listing(reading, path).rejected] == ["a link or a device"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_counts_once(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.jpg", b"first")
        archive.writestr("a/1.jpg", b"second")
    source = open_uri(str(path), reading)
    assert [one.reason for one in source.listing().rejected] == ["its name occurs twice"]
    assert len(list(source.read({"a/1.jpg"}))) == 1


def test_a_zip_bomb_stays_small_in_memory(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/bomb.jpg", b"\0" * (64 << 20))
        archive.writestr("b/ok.jpg", make_photo())
    source = open_uri(str(path), reading)
    read = dict(source.read({"a/bomb.jpg", "b/ok.jpg"}))
    assert isinstance(read["a/bomb.jpg"], Rejected)
    assert read["b/ok.jpg"] == make_photo()


def test_a_zip_member_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/bomb.jpg", b"\0" * (4 << 20))
    data = bytearray(path.read_bytes())
    real = (4 << 20).to_bytes(4, "little")
    at = data.rfind(real)
    data[at : at + 4] = (100).to_bytes(4, "little")
    tree = ZipTree(lambda: io.BytesIO(bytes(data)))
    try:
        found = dict(tree.read({"a/bomb.jpg"}, 1 << 20))
    except InvalidInput:
        return
    assert isinstance(found["a/bomb.jpg"], Rejected)


def test_the_unpacked_bytes_are_bounded(
    tmp_path: Path, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"a/{n}.jpg": b"\0" * 100_000 for n in range(10)}
    for path in (write_zip(tmp_path, files), write_tar(tmp_path, files)):
        monkeypatch.setattr(trees, "MAX_UNPACKED_BYTES", 500_000)
        with pytest.raises(InvalidInput, match="more than the limit"):
            dict(open_uri(str(path), reading).read(files.keys()))


def test_a_tar_with_a_huge_header_is_refused(reading: Reading) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    head = info.tobuf(tarfile.GNU_FORMAT)
    data = gzip.compress(head + b"\0" * 10_000)
    digest = reading.blobs.put("p", data)
    with pytest.raises(InvalidInput, match="larger than the limit"):
        open_archive("p", digest, reading).listing()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_a_truncated_archive_is_an_error(
    kind: str, share: float, tmp_path: Path, reading: Reading
) -> None:
    files = {f"{label}/{n}.jpg": make_photo(n) for n in range(3) for label in "ab"}
    path = WRITERS[kind](tmp_path, files)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InvalidInput, match="damaged"):
        listing(reading, path)


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.7" * 100])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="neither zip nor tar"):
        archive_tree(lambda: io.BytesIO(data))


def test_an_encrypted_zip_is_an_error(tmp_path: Path, reading: Reading) -> None:
    path = write_zip(tmp_path, {"a/1.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidInput, match="encrypted"):
        dict(open_uri(str(path), reading).read({"a/1.jpg"}))


def test_files_of_the_host_are_not_read_for_others(tmp_path: Path, reading: Reading) -> None:
    root = write_folder(tmp_path / "shared", {"a/1.jpg": b"x", "b/1.jpg": b"x"})
    write_folder(tmp_path / "secret", {"a/1.jpg": b"x"})
    (root / "a" / "link.jpg").symlink_to(tmp_path / "secret" / "a" / "1.jpg")
    (root / "out").symlink_to(tmp_path / "secret")
    open_to_all = UriPolicy.for_host("0.0.0.0", [root])
    remote = replace(reading, policy=open_to_all)
    for uri in (
        str(tmp_path / "secret"),
        f"file://{tmp_path}/secret",
        f"{root}/../secret",
        f"{root}/out",
        "/etc",
    ):
        with pytest.raises(Precondition, match="upload an archive"):
            open_uri(uri, remote)
    found = listing(remote, root)
    assert sorted(labels_of(found)) == ["a/1.jpg", "b/1.jpg"]
    assert [one.reason for one in found.rejected] == ["a link that leads out of the folder"]


def test_what_holds_all_projects_data_is_nobodys(tmp_path: Path, reading: Reading) -> None:
    write_folder(tmp_path / "root" / "photos", {"a/1.jpg": b"x", "b/1.jpg": b"x"})
    write_folder(tmp_path / "root" / "blobs", {"a/1.jpg": b"x", "b/1.jpg": b"x"})
    (tmp_path / "root" / "link").symlink_to(tmp_path / "root" / "blobs")
    root, hidden = tmp_path / "root", str(tmp_path / "root" / "blobs")
    for host, allowed, refused in (
        ("127.0.0.1", ("photos", ""), ("blobs", "blobs/a", "photos/../blobs", "link")),
        ("0.0.0.0", ("photos",), ("blobs", "blobs/a", "photos/../blobs", "link", "")),
    ):
        policy = UriPolicy.for_host(host, [root], hidden=[hidden])
        for path in allowed:
            policy.check(f"{root}/{path}")
        for path in refused:
            for uri in (f"{root}/{path}", f"file://{root}/{path}"):
                with pytest.raises(Precondition, match="all projects"):
                    policy.check(uri)
    bucket = UriPolicy.for_host("0.0.0.0", hidden=["s3://bucket/stillhouse"])
    bucket.check("s3://bucket/photos")
    for uri in (
        "s3://bucket/stillhouse/projects/a",
        "s3://bucket/photos/../stillhouse/projects/a",
        "S3://bucket//stillhouse/",
        "s3://bucket/stillhouse?versionId=1",
        "s3://bucket",
    ):
        with pytest.raises(Precondition, match="all projects"):
            bucket.check(uri)


def test_an_archive_is_fetched_from_an_allowed_address_alone(reading: Reading) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in ("a/1.jpg", "b/1.jpg"):
            archive.writestr(name, b"x")
    away = (302, {"location": "http://169.254.169.254/x.zip"}, b"")
    with web({"/x.zip": (200, {}, data.getvalue()), "/away.zip": away}) as (url, seen):
        with pytest.raises(Precondition, match="no public address"):
            check_uri(f"{url}/x.zip", reading)
        assert not seen
        policy = UriPolicy.for_host("0.0.0.0", addresses=Addresses(("127.0.0.1",)))
        allowed = replace(reading, policy=policy)
        source = open_uri(f"{url}/x.zip", allowed)
        assert sorted(labels_of(source.listing())) == ["a/1.jpg", "b/1.jpg"]
        with pytest.raises(Precondition, match="no public address"):
            open_uri(f"{url}/away.zip", allowed)
        with pytest.raises(InvalidInput, match="over 10 bytes"):
            open_uri(f"{url}/x.zip", replace(allowed, max_web_bytes=10))


@pytest.mark.parametrize(
    "uri", ["http://169.254.169.254/x.zip", "http://127.1.2.3/x.zip", "https://10.0.0.1/x.zip"]
)
@pytest.mark.parametrize("loopback", [True, False])
def test_addresses_inside_are_refused(uri: str, loopback: bool) -> None:
    with pytest.raises(Precondition, match="no public address"):
        UriPolicy(loopback).check(uri)


@pytest.mark.parametrize("uri", ["sftp://h/x", "memory://x", "github://o:r@/x", "abfs://c@h/x"])
def test_other_schemes_are_refused_for_others(uri: str) -> None:
    with pytest.raises(Precondition, match="does not read"):
        UriPolicy(loopback=False).check(uri)


@pytest.mark.parametrize(
    "uri", ["zip://*::file:///etc/x.zip", "simplecache::s3://b/x", "s3://" + "b" * 5000]
)
def test_chained_uris_are_refused_for_all(uri: str) -> None:
    with pytest.raises(InvalidInput, match="chained"):
        UriPolicy(loopback=True).check(uri)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.1.2.3", False),
        ("gateway", False),
    ],
)
def test_who_is_loopback(host: str, loopback: bool) -> None:
    assert UriPolicy.for_host(host).loopback is loopback


@pytest.mark.parametrize(
    ("uri", "error"),
    [("", InvalidInput), ("/nowhere/at/all", NotFound), ("builtin:nothing", NotFound)],
)
def test_what_is_not_there_is_said_at_once(
    uri: str, error: type[StillhouseError], reading: Reading
) -> None:
    with pytest.raises(error):
        check_uri(uri, reading)
