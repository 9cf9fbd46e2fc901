"""Build hook: generate `gen/` from `protos/` before the package is assembled."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtosHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs scripts/protos.py in the build environment."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        sys.path.insert(0, str(Path(self.root) / "scripts"))
        import protos

        protos.generate(Path(self.root))
