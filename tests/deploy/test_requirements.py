"""What an image installs before it gets the sources is what its extra asks for."""

from __future__ import annotations

import tomllib

import pytest

from scripts.requirements import requirements
from tests.deploy.recipe import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_an_extra_brings_what_every_service_needs_and_the_extras_it_names() -> None:
    found = requirements(PROJECT, ["teacher"], only=False)
    assert {"torch==2.13.0", "grpcio==1.85.1"} <= set(found)
    assert not [one for one in found if one.startswith("stillhouse")]


def test_the_gateway_asks_for_no_torch() -> None:
    found = requirements(PROJECT, ["gateway", "s3"], only=False)
    assert not [one for one in found if one.startswith(("torch", "timm", "transformers"))]
    assert [one for one in found if one.startswith("s3fs==")]


def test_everything_is_pinned() -> None:
    extras = ["teacher", "concepts", "student", "gateway", "s3", "web"]
    loose = [one for one in requirements(PROJECT, extras, only=False) if "==" not in one]
    assert not loose


def test_an_unknown_extra_is_an_error() -> None:
    with pytest.raises(KeyError):
        requirements(PROJECT, ["techer"], only=False)
