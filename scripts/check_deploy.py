"""Checks deploy/: `python scripts/check_deploy.py`, a part of `make lint`.

The Dockerfile by hadolint; compose.yaml by the compose specification's schema; each overlay as
kustomize renders it, by the schemas of the oldest and the newest Kubernetes that we support; and
then what no schema knows (scripts/deploy_checks): that variables are settings, that names lead
somewhere, that pods have no rights and get the time to drain.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.deploy_checks import compose, rules  # noqa: E402
from scripts.deploy_checks.objects import Manifest, Objects  # noqa: E402

DEPLOY = ROOT / "deploy"
OVERLAYS = ("cpu-trial", "gpu-production")
KUBERNETES = ("1.30", "1.37")
_SCHEMAS = Path(__file__).parent / "deploy_checks" / "schemas"
_BIN = Path(sys.executable).parent


def main() -> int:
    """Print what is wrong; return 1 where anything is."""
    found = [*_dockerfile(), *_compose()]
    for name in OVERLAYS:
        manifests = render(DEPLOY / "k8s" / "overlays" / name)
        wrong = [*by_schema(manifests), *rules.problems(Objects(manifests))]
        found += [f"overlay {name}: {one}" for one in wrong]
        print(f"overlay {name}: {len(manifests)} objects")
    print("\n".join(found) or "deploy/: all well", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


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
