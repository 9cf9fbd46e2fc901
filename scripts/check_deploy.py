"""Checks deploy/: `python scripts/check_deploy.py`, a part of `make lint`.

The Dockerfile by hadolint; compose.yaml by the compose specification's schema; each overlay as
kustomize renders it, with and without each component, by the schemas of the oldest and the newest
Kubernetes that we support; and then what no schema knows (scripts/deploy_checks): that variables
are settings, that names lead somewhere, that certificates fit what is called, that pods have no
rights and get the time to drain.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.deploy_checks import certificates, compose, rules  # noqa: E402
from scripts.deploy_checks.objects import Manifest, Objects  # noqa: E402

DEPLOY = ROOT / "deploy"
OVERLAYS = ("cpu-trial", "gpu-production")
COMPONENTS = ("mtls",)
"""What an overlay may take in addition; each is checked in each overlay."""
KUBERNETES = ("1.30", "1.37")
_SCHEMAS = Path(__file__).parent / "deploy_checks" / "schemas"
_BIN = Path(sys.executable).parent


def main() -> int:
    """Print what is wrong; return 1 where anything is."""
    found = [*_dockerfile(), *_compose()]
    for name in OVERLAYS:
        for component in ("", *COMPONENTS):
            manifests = overlay(name, component)
            called = f"overlay {name}{' with ' if component else ''}{component}"
            found += [f"{called}: {one}" for one in problems(manifests)]
            print(f"{called}: {len(manifests)} objects")
    print("\n".join(found) or "deploy/: all well", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


def overlay(name: str, component: str = "") -> list[Manifest]:
    """Return the objects of an overlay, of a copy that takes a component where one is named."""
    if not component:
        return render(DEPLOY / "k8s" / "overlays" / name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(DEPLOY / "k8s", Path(scratch, "k8s")), "overlays", name)
        with (folder / "kustomization.yaml").open("a", encoding="utf-8") as file:
            file.write(f"components: [../../components/{component}]\n")
        return render(folder)


def problems(manifests: list[Manifest]) -> list[str]:
    """Return all that is wrong with the objects of an overlay."""
    objects = Objects(manifests)
    return [*by_schema(manifests), *rules.problems(objects), *certificates.problems(objects)]


def render(folder: Path) -> list[Manifest]:
    """Return the objects of an overlay. Raises CalledProcessError where kustomize refuses it."""
    command = [_BIN / "kubectl", "kustomize", folder]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [one for one in yaml.safe_load_all(text) if one]


def by_schema(manifests: list[Manifest]) -> Iterator[str]:
    """Yield what the schemas have against objects; a kind without a schema is refused as well."""
    for one in manifests:
        named = f"{one['kind']} {one['metadata']['name']}"
        own = _SCHEMAS / f"{one['apiVersion'].replace('/', '_')}_{one['kind']}.json"
        try:
            if own.exists():
                jsonschema.validate(one, json.loads(own.read_text(encoding="utf-8")))
                continue
            for version in KUBERNETES:
                kubernetes_validate.validate(one, version, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            yield f"{named}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield f"{named}: no schema ({error})"


def _dockerfile() -> Iterator[str]:
    command = [_BIN / "hadolint", "--config", DEPLOY / "hadolint.yaml", DEPLOY / "Dockerfile"]
    yield from _says(command)


def _compose() -> Iterator[str]:
    path = DEPLOY / "compose.yaml"
    schema = ["--builtin-schema", "vendor.compose-spec"]
    yield from _says([_BIN / "check-jsonschema", *schema, "--output-format", "text", path])
    parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    yield from (f"compose.yaml: {one}" for one in compose.problems(parsed))


def _says(command: list[str | Path]) -> Iterator[str]:
    """Yield what a linter printed, where it did not like what it saw."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield (done.stdout + done.stderr).strip()


if __name__ == "__main__":
    sys.exit(main())
