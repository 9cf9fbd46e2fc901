"""Writes a CycloneDX SBOM for each image: `python scripts/sbom.py`, into sbom/.

What is in it is what the Dockerfile installs: the locked packages of the service, of its further
extras, and, where it runs models, torch's; of the gateway also the npm packages that the workbench
is built from. Each has its hashes and its licence. Debian's packages belong to the base image,
whose SBOM its makers publish.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.licences import licence_of, spelt  # noqa: E402

SERVICES = ("teacher", "concepts", "student", "gateway")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def main() -> int:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="s3", help="as the image's, with commas")
    parser.add_argument("--to", type=Path, default=ROOT / "sbom")
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    for service in SERVICES:
        path = given.to / f"{service}.cdx.json"
        path.write_text(sbom(service, [one for one in given.extras.split(",") if one]))
        print(path)
    return 0


def sbom(service: str, extras: Iterable[str] = ("s3",)) -> str:
    """Return an image's SBOM as CycloneDX 1.6 JSON."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bom, licences = Bom(), LicenseFactory()
    root = Component(
        name=f"stillhouse-{service}",
        version=project["version"],
        type=ComponentType.CONTAINER,
        bom_ref="image",
        licenses=[licences.make_from_string(project["license"])],
    )
    bom.metadata.component = root
    targets = [service, *extras, *([] if service == "gateway" else ["torch"])]
    found = {part.purl: part for target in targets for part in _locked(target, licences)}
    if service == "gateway":
        found |= {part.purl: part for part in _npm(licences)}
    for part in found.values():
        bom.components.add(part)
    bom.register_dependency(root, bom.components)
    return str(JsonV1Dot6(bom).output_as_string(indent=1))


def _locked(target: str, licences: LicenseFactory) -> Iterator[Component]:
    """Yield the packages of a lock file, with the hashes of all their files."""
    text = (ROOT / "requirements" / f"{target}.txt").read_text(encoding="utf-8")
    for block in re.split(r"\n(?=[A-Za-z])", text):
        pin = _PIN.match(block)
        if pin is None:
            continue
        name, version = pin[1], pin[2]
        yield Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            purl=PackageURL("pypi", None, name.lower(), version),
            bom_ref=f"pypi/{name}@{version}",
            hashes=[_sha256(one) for one in _HASH.findall(block)],
            licenses=[licences.make_from_string(licence_of(name))],
        )


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _npm(licences: LicenseFactory) -> Iterator[Component]:
    lock = json.loads((ROOT / "web" / "package-lock.json").read_text(encoding="utf-8"))
    for path, entry in sorted(lock["packages"].items()):
        if not path:
            continue
        full = path.rpartition("node_modules/")[2]
        group, _, name = full.rpartition("/")
        yield Component(
            group=group or None,
            name=name,
            version=entry["version"],
            type=ComponentType.LIBRARY,
            purl=PackageURL("npm", group or None, name, entry["version"]),
            bom_ref=f"npm/{path}@{entry['version']}",
            licenses=[licences.make_from_string(spelt(entry["license"]))],
        )


if __name__ == "__main__":
    sys.exit(main())
