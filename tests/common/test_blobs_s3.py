"""The blob store in a bucket: the same promises, over S3's own protocol."""

from __future__ import annotations

import hashlib
import io
import urllib.request
from collections.abc import Iterator

import boto3
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from services.common.blobs import BlobStore
from services.common.errors import NotFound, Precondition
from services.common.shelf import Shelf
from services.gateway.keeping.lease import Lease


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, which the environment leads to, as a pod's secret does."""
    urllib.request.urlopen(
        urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    ).close()
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="blobs")
    return "s3://blobs/stillhouse"


def test_blobs_and_streams_come_back_by_digest_and_only_in_their_project(bucket: str) -> None:
    blobs = BlobStore(bucket)
    digest = blobs.put("one", b"pear")
    assert blobs.put("one", b"pear") == digest == hashlib.sha256(b"pear").hexdigest()
    data = bytes(range(256)) * 30_000  # more than a part of a multipart upload
    streamed, size = blobs.put_file("one", io.BytesIO(data))
    other = BlobStore(bucket)
    assert other.get("one", digest) == b"pear"
    assert (other.get("one", streamed), size) == (data, len(data))
    with other.open("one", streamed) as stream:
        stream.seek(256)
        assert stream.read(3) == b"\x00\x01\x02"
    assert not other.exists("two", digest)
    for read in (other.get, other.open):
        with pytest.raises(NotFound):
            read("two", digest)


def test_refs_are_replaced_and_listed_as_another_process_left_them(bucket: str) -> None:
    here, there = BlobStore(bucket), BlobStore(bucket)
    assert list(here.list_refs("one", "models")) == []
    there.put_ref("one", "models/b", b"1")
    there.put_ref("one", "models/a", b"1")
    assert list(here.list_refs("one", "models")) == ["a", "b"]
    there.put_ref("one", "models/a", b"2")
    there.put_ref("one", "models/c", b"3")
    assert here.get_ref("one", "models/a") == b"2"
    assert here.get_ref("one", "models/c") == b"3"
    assert list(here.list_refs("one", "models")) == ["a", "b", "c"]
    with pytest.raises(NotFound):
        here.get_ref("two", "models/a")


def test_a_blob_that_another_process_has_removed_is_written_again(bucket: str) -> None:
    shelf = Shelf(bucket)
    digest = shelf.put("one", b"pear")
    assert [kept.name for kept in shelf.blobs("one")] == [digest]
    key = f"stillhouse/projects/one/blobs/{digest[:2]}/{digest}"
    boto3.client("s3").delete_object(Bucket="blobs", Key=key)
    assert not shelf.exists("one", digest)
    assert shelf.put("one", b"pear") == digest
    assert boto3.client("s3").get_object(Bucket="blobs", Key=key)["Body"].read() == b"pear"


def test_of_two_that_begin_at_one_moment_in_a_bucket_not_both_keep_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Lease(Shelf(bucket), "one"), Lease(Shelf(bucket), "other")
    monkeypatch.setattr("services.gateway.keeping.lease.time.sleep", lambda seconds: other._write())
    with pytest.raises(Precondition, match="another process"):
        one.take()
    other.check()
    other.release()
    assert Shelf(bucket).read_file("keeping.json") is None


def test_a_damaged_blob_is_not_returned(bucket: str) -> None:
    blobs = BlobStore(bucket)
    digest = blobs.put("one", b"pear")
    key = f"stillhouse/projects/one/blobs/{digest[:2]}/{digest}"
    boto3.client("s3").put_object(Bucket="blobs", Key=key, Body=b"peaR")
    with pytest.raises(NotFound, match="damaged"):
        blobs.get("one", digest)


def test_nothing_is_left_of_an_upload_but_the_blob(bucket: str) -> None:
    blobs = BlobStore(bucket)
    digest, _ = blobs.put_file("one", io.BytesIO(b"pear"))
    listed = boto3.client("s3").list_objects_v2(Bucket="blobs")["Contents"]
    assert [one["Key"].rsplit("/", 1)[1] for one in listed] == [digest]
