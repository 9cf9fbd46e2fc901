"""Send kept inputs again, each to a new suite's end: `python -m tests.hostile.replay FILE ...`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.hostile.inputs import Input
from tests.hostile.sending import Sender
from tests.hostile.tally import logged
from tests.hostile.world import world


def main() -> int:
    """Start a suite, send the files' inputs, and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--deadline-s", type=float, default=60.0)
    parser.add_argument("--images", type=int, default=24)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="hostile-") as folder,
        world(Path(folder), images=given.images) as running,
    ):
        sender, bad = Sender(running, given.deadline_s), 0
        for path in given.files:
            one = Input.load(path)
            found = sender.send(one)
            bad += found.is_internal or found.is_late
            print(f"{path.name}: {one.label}: {found.code} in {found.seconds:.2f} s: {found.said}")
        sender.close()
        for line in logged(running.suite.folder):
            print(line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
