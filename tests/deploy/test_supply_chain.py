"""What images install is pinned, hashed, listed with its licence, and told in an SBOM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts import licences, lock, sbom
from tests.deploy.recipe import ROOT


def test_locks_fit_what_is_asked_for_and_name_no_index() -> None:
    assert lock.problems() == []


def test_a_lock_that_does_not_fit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in lock.LOCKS.glob("*.txt"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(lock, "LOCKS", tmp_path)
    gateway = tmp_path / "gateway.txt"
    text = gateway.read_text().replace("dbos==", "dbos==0.")
    gateway.write_text(text + "--extra-index-url somewhere\nloose==1.0\n")
    found = "\n".join(lock.problems())
    assert "does not have dbos==" in found
    assert "names an index" in found
    assert "loose==1.0 has no hash" in found


def test_services_agree_on_every_version() -> None:
    versions: dict[str, set[str]] = {}
    for path in lock.LOCKS.glob("*.txt"):
        for name, version, marker in lock._PIN.findall(path.read_text()):
            versions.setdefault(f"{name} {marker.strip()}", set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_gateways_lock_has_no_torch_and_the_others_leave_it_to_its_own() -> None:
    for path in lock.LOCKS.glob("*.txt"):
        heavy = [k for k in lock._blocks(path.read_text()) if lock.TORCH.match(k)]
        assert bool(heavy) == (path.name == "torch.txt"), path.name


def test_every_licence_is_listed_and_allowed() -> None:
    assert licences.problems() == []


@pytest.mark.parametrize(
    ("licence", "is_allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("AGPL-3.0-only", False),
        ("(MIT OR CC0-1.0)", True),
        ("", False),
    ],
)
def test_only_listed_licences_pass(licence: str, is_allowed: bool) -> None:
    assert licences.is_allowed("some-package", licence) == is_allowed


@pytest.mark.parametrize("service", sbom.SERVICES)
def test_an_sbom_is_valid_and_holds_what_the_lock_does(service: str) -> None:
    text = sbom.sbom(service)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["purl"]: part for part in json.loads(text)["components"]}
    locked = lock._PIN.findall((ROOT / "requirements" / f"{service}.txt").read_text())
    assert {f"pkg:pypi/{name.lower()}@{version}" for name, version, _ in locked} <= set(parts)
    assert any(purl.startswith("pkg:pypi/torch@") for purl in parts) == (service != "gateway")
    assert any(purl.startswith("pkg:npm/") for purl in parts) == (service == "gateway")
    grpcio = next(part for purl, part in parts.items() if purl.startswith("pkg:pypi/grpcio@"))
    assert len(grpcio["hashes"]) > 10
    assert all(part["licenses"] for part in parts.values())
