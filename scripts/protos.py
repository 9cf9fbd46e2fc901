"""Generate `gen/` from `protos/`: messages, services, type stubs. Run at install and by make."""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from pathlib import Path

from google.api import annotations_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
FOREIGN = {"stillhouse/inference/v2": "inference"}
"""Protocols that are not ours: folder under `protos/` by the folder their modules are generated
into. They keep their proto packages, but top-level Python packages of those names would meet others
in site-packages."""


def google_protos() -> Path:
    """Return the folder that holds `google/api/*.proto` (from googleapis-common-protos)."""
    return Path(annotations_pb2.__file__).parent.parent.parent


def plugin(name: str) -> str:
    """Return protoc's argument for a plugin: on the path, or beside this interpreter."""
    found = shutil.which(name) or str(Path(sys.executable).parent / name)
    return f"--plugin={name}={found}"


def generate(root: Path = ROOT) -> Path:
    """Write `gen/stillhouse/**` anew and return `gen`; what was there stays where protoc fails."""
    out, fresh = root / "gen", root / "gen" / ".fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    sources = sorted(str(path) for path in (root / "protos" / "stillhouse").rglob("*.proto"))
    includes = [root / "protos", google_protos(), resources.files("grpc_tools") / "_proto"]
    for virtual, folder in FOREIGN.items():
        includes.append(f"{virtual}={root / 'protos' / folder}")
        names = sorted(path.name for path in (root / "protos" / folder).glob("*.proto"))
        sources += [f"{virtual}/{name}" for name in names]
    arguments = ["protoc", *(f"-I{path}" for path in includes), *map(plugin, PLUGINS)]
    arguments += [f"--python_out={fresh}", f"--grpc_python_out={fresh}"]
    arguments += [f"--mypy_out=quiet:{fresh}", f"--mypy_grpc_out=quiet,only_async:{fresh}"]
    # With comments, which generated code drops: the OpenAPI document quotes them.
    arguments += ["--include_source_info", f"--descriptor_set_out={fresh / 'contract.binpb'}"]
    if protoc.main([*arguments, *sources]) != 0:
        raise RuntimeError("protoc failed; its messages are above")
    for folder in [path for path in fresh.rglob("*") if path.is_dir()]:
        (folder / "__init__.py").touch()
    (fresh / "stillhouse" / "py.typed").touch()
    (fresh / "contract.binpb").rename(fresh / "stillhouse" / "contract.binpb")
    shutil.rmtree(out / "stillhouse", ignore_errors=True)
    (fresh / "stillhouse").rename(out / "stillhouse")
    fresh.rmdir()
    return out


def copy_google(root: Path = ROOT) -> None:
    """Copy google's protos into `.deps/googleapis`, where buf looks for imports."""
    target = root / ".deps" / "googleapis" / "google"
    shutil.rmtree(target, ignore_errors=True)
    for part in ("api", "rpc"):
        for source in (google_protos() / "google" / part).glob("*.proto"):
            (target / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / part / source.name)


if __name__ == "__main__":
    generate()
    if "--buf" in sys.argv:
        copy_google()
