from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from services.common.archive import ArchiveError, unpack


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_only_the_member_asked_for_comes_out(tmp_path: Path, pack: object) -> None:
    archive = pack(tmp_path / "a", {"p/x": b"1", "p/q/y": b"2", "other": b"3"})  # type: ignore[operator]
    assert unpack(archive, tmp_path / "one", "p/x") == ["p/x"]
    assert unpack(archive, tmp_path / "folder", "p/") == ["p/q/y", "p/x"]
    assert unpack(archive, tmp_path / "all") == ["other", "p/q/y", "p/x"]
    assert (tmp_path / "folder" / "p" / "q" / "y").read_bytes() == b"2"
    assert not (tmp_path / "one" / "other").exists()


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../out", "p/../../out", "/tmp/out", "p\\..\\out", "C:/out"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, pack: object, name: str) -> None:
    archive = pack(tmp_path / "a", {name: b"x"})  # type: ignore[operator]
    with pytest.raises(ArchiveError, match="unsafe"):
        unpack(archive, tmp_path / "deep" / "folder")
    assert not (tmp_path / "deep" / "out").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(ArchiveError, match="not a regular file"):
        unpack(tarred(tmp_path / "a", {}, link), tmp_path / "out")


def test_bytes_are_counted_as_they_come(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a", {"big": bytes(1_000_000)})
    with pytest.raises(ArchiveError, match="more than the limit"):
        unpack(archive, tmp_path / "out", max_bytes=100_000)


def test_files_are_counted(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a", {str(i): b"" for i in range(6)})
    with pytest.raises(ArchiveError, match="more than 5 files"):
        unpack(archive, tmp_path / "out", max_files=5)


def test_missing_member_and_rubbish(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no"):
        unpack(zipped(tmp_path / "a", {"x": b""}), tmp_path / "out", "y")
    (tmp_path / "b").write_bytes(b"not an archive")
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(tmp_path / "b", tmp_path / "out")


def test_truncated_archive_is_damaged(tmp_path: Path) -> None:
    whole = tarred(tmp_path / "a", {"x": bytes(range(256)) * 400}).read_bytes()
    (tmp_path / "b").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(tmp_path / "b", tmp_path / "out")
