"""Coverage-guided fuzzing of every decoder: `python -m tests.hostile.fuzz`.

Each decoder runs under atheris in a process of its own, which mutates bytes towards code that was
not reached before, for `--seconds`. What reached something new is kept under `--folder` and is
where the next run begins; what broke something is kept there too, and the command that feeds it
again is printed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(".deps/fuzz")
_SPARE_S = 900
"""What a process may take to start and to end."""
_TIMEOUT_S, _MEMORY_MB = 10, 2048
"""Of one input."""
_DONE = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_COVERED = re.compile(r"cov: (\d+)")


@dataclass(frozen=True)
class Found:
    """What came of one decoder."""

    target: str
    inputs: int
    covered: int
    """Branches of the instrumented code that were reached."""
    broken: list[str]
    """Files whose bytes break it."""


def main() -> int:
    """Fuzz, print a table, then one JSON object; the exit status is 0 where nothing broke."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each decoder")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what was found before")
    parser.add_argument("--only", nargs="*", default=[], help="names of decoders")
    parser.add_argument("--feed", type=Path, help="one file, to the decoder of --only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child or args.feed:
        return _fuzz(args.child or args.only[0], args)
    return _report(_all(args))


def _all(args: argparse.Namespace) -> list[Found]:
    listed = subprocess.run(
        [sys.executable, "-c", "from tests.hostile import fuzz_targets as f; print(*f.TARGETS)"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    names = [one for one in listed.stdout.split() if not args.only or one in args.only]
    if unknown := set(args.only) - set(names):
        sys.exit(f"no such decoder: {', '.join(sorted(unknown))}; there are {listed.stdout}")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda name: _one(name, args), names))


def _one(name: str, args: argparse.Namespace) -> Found:
    """Run a decoder's process."""
    home = args.folder / name
    (home / "broken").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--child", name]
    command += ["--seconds", str(args.seconds), "--folder", str(args.folder)]
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as child,
    ):
        try:
            code = child.wait(args.seconds + _SPARE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
    said = (home / "log").read_text(errors="replace")
    broken = sorted(str(path) for path in (home / "broken").iterdir())
    if code and not broken:
        broken = [f"exit status {code}: {home / 'log'}"]
    inputs = int((_DONE.findall(said) or ["0"])[-1])
    covered = int((_COVERED.findall(said) or ["0"])[-1])
    print(
        f"{name:16}{inputs:10,} inputs{covered:7,} branches  {'BROKEN' * bool(broken)}", flush=True
    )
    return Found(name, inputs, covered, broken)


def _fuzz(name: str, args: argparse.Namespace) -> int:
    """Feed one decoder in this process, which does not come back."""
    import atheris  # a package of its own extra, for this program alone

    with atheris.instrument_imports(include=["services", "PIL", "tarfile", "zipfile"]):
        from tests.hostile.fuzz_targets import TARGETS
    target = TARGETS[name]
    if args.feed:
        target(args.feed.read_bytes())
        print("answered or refused, as it should")
        return 0
    home = (args.folder / name).absolute()
    for part in ("seeds", "corpus", "broken"):
        (home / part).mkdir(exist_ok=True, parents=True)
    for at, seed in enumerate(target.seeds):
        (home / "seeds" / str(at)).write_bytes(seed)
    options = {
        "max_total_time": args.seconds,
        "max_len": 1 << 16,
        "timeout": _TIMEOUT_S,
        "rss_limit_mb": _MEMORY_MB,
        "artifact_prefix": f"{home / 'broken'}/",
        "print_final_stats": 1,
        "verbosity": 1,
    }
    folders = [str(home / "corpus"), str(home / "seeds")]
    flags = [f"-{key}={value}" for key, value in options.items()]

    def feed(data: bytes) -> None:
        try:
            target(data)
        except Exception:  # libFuzzer does not always get to write what raised
            name = f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
            (home / "broken" / name).write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *flags, *folders], feed)
    atheris.Fuzz()
    return 0


def _report(found: list[Found]) -> int:
    broken = {one.target: one.broken for one in found if one.broken}
    for target, files in broken.items():
        for file in files:
            print(f"again: python -m tests.hostile.fuzz --only {target} --feed {file}")
    told = {
        "inputs": sum(one.inputs for one in found),
        "decoders": len(found),
        "broken": sum(len(files) for files in broken.values()),
        "each": [asdict(one) for one in found],
    }
    print(json.dumps(told))
    return 1 if broken or not all(one.inputs for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
