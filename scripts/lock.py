"""Makes requirements/*.txt anew: every package that an image installs, pinned and hashed.

`python scripts/lock.py` resolves with uv for all platforms and Pythons of pyproject.toml, first
all services together, so that they agree, then each target within that. `--check` compares the
files with pyproject.toml, offline and in a moment; it is a part of `make lint`.

torch and what belongs to a GPU build of it are in a file of their own: they are those of pip's own
index, and whoever takes torch from another index (TORCH_INDEX of the Dockerfile) has other files.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.requirements import requirements  # noqa: E402

LOCKS = ROOT / "requirements"
TARGETS = ("teacher", "concepts", "student", "gateway", "s3", "otel", "web")
ALONE = ("s3", "otel", "web")
"""Targets that are installed on top of a service, or beside it."""
TORCH = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)([^\\]*)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HEAD = "# Made by `make lock`, from pyproject.toml. Installed with --require-hashes --no-deps.\n"


def main() -> int:
    """Lock, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare with pyproject.toml")
    if parser.parse_args().check:
        found = problems()
        said = "\n".join(found) or "requirements/: all well"
        print(said, file=sys.stderr if found else sys.stdout)
        return 1 if found else 0
    lock()
    return 0


def wanted(target: str) -> list[str]:
    """Return what pyproject.toml asks for a target."""
    parsed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if target == "build":
        return list(parsed["build-system"]["requires"])
    project: dict[str, Any] = parsed["project"]
    return requirements(project, [target], only=target in ALONE)


def lock() -> None:
    """Resolve, and write all files. Raises CalledProcessError where there is no solution."""
    LOCKS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        together = sorted({one for target in (*TARGETS, "build") for one in wanted(target)})
        whole = _compile(folder, "all", together, constraint=None)
        torch: dict[str, str] = {}
        for target in (*TARGETS, "build"):
            blocks = _blocks(_compile(folder, target, wanted(target), constraint=whole).read_text())
            torch |= {key: block for key, block in blocks.items() if TORCH.match(key)}
            rest = [block for key, block in blocks.items() if not TORCH.match(key)]
            (LOCKS / f"{target}.txt").write_text(_HEAD + "".join(rest))
        (LOCKS / "torch.txt").write_text(_HEAD + "".join(torch[key] for key in sorted(torch)))


def problems() -> list[str]:
    """Say where the files do not fit pyproject.toml."""
    found = []
    for target in (*TARGETS, "build"):
        text = "".join(_read(name) for name in (target, "torch"))
        pins = {_plain(name): version for name, version, _ in _PIN.findall(text)}
        for one in wanted(target):
            name, _, rest = one.partition("==")
            name = _plain(name.partition("[")[0].partition("~")[0])
            if name not in pins or (rest and pins[name] != rest):
                found.append(f"requirements/{target}.txt does not have {one}; run `make lock`")
        found += _unhashed(target)
    return [*found, *_unhashed("torch")]


def _unhashed(target: str) -> list[str]:
    text = _read(target)
    wrong = [
        f"requirements/{target}.txt: {key} has no hash"
        for key, block in _blocks(text).items()
        if "--hash=sha256:" not in block
    ]
    named = re.search(r"https?://|--(extra-)?index-url", text)
    return wrong + ([f"requirements/{target}.txt names an index"] if named else [])


def _read(target: str) -> str:
    path = LOCKS / f"{target}.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _blocks(text: str) -> dict[str, str]:
    """Return the lines of each pinned package, by its first line."""
    blocks: dict[str, str] = {}
    key = ""
    for line in text.splitlines(keepends=True):
        if _PIN.match(line):
            key = line.rstrip(" \\\n")
            blocks[key] = ""
        if key and not line.startswith("#"):
            blocks[key] += line
    return blocks


def _compile(folder: Path, name: str, asked: list[str], constraint: Path | None) -> Path:
    source, target = folder / f"{name}.in", folder / f"{name}.lock"
    source.write_text("\n".join(asked) + "\n")
    command = ["pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--quiet", "--output-file", str(target)]
    command += ["--constraint", str(constraint)] if constraint else []
    subprocess.run(
        [sys.executable, "-m", "uv", *command, str(source)],
        env={**os.environ, **_indexes()},
        check=True,
    )
    return target


def _indexes() -> dict[str, str]:
    """Let uv ask where pip would; the files never say where that is."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = dict(re.findall(r"^(?:global|:env:)\.index-url='(.*)'()$", listed, re.MULTILINE))
    url = next(iter(found), os.environ.get("PIP_INDEX_URL", ""))
    return {"UV_DEFAULT_INDEX": url} if url else {}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
