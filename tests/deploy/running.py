"""Runs an image's command as a container would: another user, no rights, a root file system that
nobody can write to, and nothing of the tree under test in reach."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.recipe import Image
from tests.support import free_port

USER = 10001
# The home folder of whoever tests goes away, but for the interpreter, which may lie there.
_ROOM = """
set -e
mount --make-rprivate /
for folder in lib/stillhouse cache/stillhouse; do
  mount --bind "$DATA/$folder" "$IMAGE/var/$folder"
done
mount --bind "$WEIGHTS" "$IMAGE/weights"
mount -o remount,bind,ro "$IMAGE/weights"
mount --bind "$PYTHON" "$IMAGE/python"
mount -o remount,bind,ro "$IMAGE/python"
mount -t tmpfs -o mode=755 tmpfs "$AWAY"
test -z "$SHUT" || mount -t tmpfs -o mode=755 tmpfs "$SHUT"
mkdir -p "$PYTHON"
mount --bind "$IMAGE/python" "$PYTHON"
cd "$IMAGE/var/lib/stillhouse"
mount -t tmpfs tmpfs /tmp
mount -o remount,bind,ro /
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all "$@"
"""


@dataclass
class Container:
    """A running service of an image."""

    image: Image
    data: Path
    port: int
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def health(self) -> tuple[int, str]:
        """Run the image's HEALTHCHECK; return its exit status and what it printed."""
        command = [self.image.inside(word) for word in self.image.command("HEALTHCHECK")]
        done = subprocess.run(
            command, env=self._environment(), cwd="/", capture_output=True, text=True
        )
        return done.returncode, done.stdout.strip()

    def log(self) -> str:
        return (self.data / "log").read_text()

    def _environment(self) -> dict[str, str]:
        return environment(self.image, self.port)


def environment(image: Image, port: int) -> dict[str, str]:
    """Return the environment of a service: the image's, and what compose.yaml would add."""
    prefix = image.service.upper()
    return image.environment | {
        f"{prefix}_PORT": str(port),
        f"{prefix}_BLOB_URL": image.inside("/var/lib/stillhouse/blobs"),
        f"{prefix}_CACHE_DIR": f"{image.folder}/weights",
        f"{prefix}_LOG_JSON": "true",
        "GATEWAY_HTTP_PORT": "-1",
        "STUDENT_RUNS_DIR": image.inside("/var/lib/stillhouse/runs"),
    }


def confined(image: Image, data: Path, command: list[str]) -> list[str]:
    """Return `command` so that it runs as in a container whose volumes are folders of `data`.

    Needs root, as a container engine does; anybody else runs the command as it is, and is then
    somebody without rights already.
    """
    for folder in ("lib/stillhouse", "cache/stillhouse"):
        for parent in (data, image.folder / "var"):
            (parent / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("weights", "python"):
        (image.folder / folder).mkdir(exist_ok=True)
    if os.geteuid() != 0:
        return command
    for folder in ("lib/stillhouse", "cache/stillhouse"):
        for path in [data / folder, *(data / folder).rglob("*")]:
            os.chown(path, USER, USER)
    weights = Path.home() / ".cache" / "stillhouse"
    weights.mkdir(parents=True, exist_ok=True)
    python = Path(os.path.realpath(image.python)).parents[1]
    names = {
        "DATA": data,
        "IMAGE": image.folder,
        "WEIGHTS": weights,
        "PYTHON": python,
        "AWAY": Path.home(),
        "SHUT": _shut_above(python),
    }
    given = " ".join(f"{name}={shlex.quote(str(path))}" for name, path in names.items())
    return ["unshare", "--mount", "--", "sh", "-c", f"{given}\n{_ROOM}", "room", *command]


def _shut_above(python: Path) -> str:
    """Return the folder above the interpreter that others may not enter, such as another home;
    empty where there is none but our own home."""
    for folder in reversed(python.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return "" if folder == Path.home() else str(folder)
    return ""


@contextmanager
def container(image: Image, data: Path, **more: str) -> Iterator[Container]:
    """Run the image's CMD until the block ends, its volumes under `data`."""
    port = free_port()
    command = [image.inside(word) for word in image.command("CMD")]
    with (data / "log").open("w") as log:
        process = subprocess.Popen(
            confined(image, data, command),
            env=environment(image, port) | more,
            cwd=image.folder / "var" / "lib" / "stillhouse",
            stdout=log,
            stderr=log,
            text=True,
        )
    running = Container(image, data, port, process)
    try:
        yield running
    finally:
        process.kill()
        process.wait()
