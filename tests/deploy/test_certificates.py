"""The checks of the component of mutual TLS see what is planted, and its files are what services
take."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.check_deploy import OVERLAYS, by_schema, overlay, problems
from scripts.deploy_checks import certificates, rules
from scripts.deploy_checks.objects import Objects
from services.common.probe import main as probe
from tests.deploy.test_rules import Edit, container, edited, variable

Manifests = list[dict[str, Any]]


@pytest.fixture(scope="module")
def secured() -> Manifests:
    return overlay("gpu-production", "mtls")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_with_certificates_are_well(name: str) -> None:
    manifests = overlay(name, "mtls")
    assert not problems(manifests)
    assert {one["metadata"]["namespace"] for one in manifests if one["kind"] == "Certificate"} == {
        "stillhouse"
    }


def test_every_service_speaks_mutual_tls(secured: Manifests) -> None:
    objects = Objects(secured)
    for pods in rules.services(objects):
        settings, said = rules.settings_of(pods.name, rules.variables(pods))
        assert settings is not None, said
        assert settings.peer_tls
        assert not settings.trusted_network
        assert settings.tls_clients or pods.name == "gateway"
        assert certificates.certificate_of(objects, pods)


def spec(**changes: Any) -> Edit:
    return lambda one: one["spec"].update(changes)


def secret(name: str) -> Edit:
    """Return an edit that mounts another secret."""

    def edit(workload: dict[str, Any]) -> None:
        volumes = workload["spec"]["template"]["spec"]["volumes"]
        (one,) = [volume for volume in volumes if volume["name"] == "tls"]
        one["secret"]["secretName"] = name

    return edit


def plain(workload: dict[str, Any]) -> None:
    """Take a service's certificates away."""
    entries = container(workload)["env"]
    entries[:] = [one for one in entries if "_TLS_" not in one["name"]]


FAULTS: list[tuple[str, str, Edit, str]] = [
    ("Deployment", "teacher", plain, "teacher: has no certificates"),
    ("Deployment", "teacher", secret("nobody-tls"), "secret nobody-tls is unknown"),
    ("Deployment", "teacher", secret("stillhouse-stores"), "no Certificate makes what is mounted"),
    (
        "StatefulSet",
        "student",
        variable("STUDENT_TLS_KEY", "/etc/stillhouse/tls/key.pem"),
        "tls_key is /etc/stillhouse/tls/key.pem",
    ),
    (
        "StatefulSet",
        "student",
        variable("STUDENT_TRUSTED_NETWORK", "true"),
        "trusts its network all the same",
    ),
    (
        "Deployment",
        "concepts",
        variable("CONCEPTS_TLS_CLIENTS", '["student"]'),
        "tls_clients keep gateway out",
    ),
    ("Certificate", "gateway", spec(commonName="x", dnsNames=["x"]), "tls_clients keep gateway"),
    ("Certificate", "teacher", spec(commonName="x", dnsNames=["x"]), "has not the name teacher"),
    ("Certificate", "gateway", spec(usages=["server auth"]), "is not for client auth"),
    ("Certificate", "student", spec(secretName="other"), "secret student-tls is unknown"),
    ("Certificate", "stillhouse-authority", spec(isCA=False), "no authority makes"),
    ("Issuer", "stillhouse", lambda one: one["metadata"].update(name="x"), "issuer is missing"),
    (
        "Deployment",
        "teacher",
        lambda one: container(one).update(readinessProbe={"grpc": {"port": 7101}}),
        "readinessProbe speaks no TLS",
    ),
]


@pytest.mark.parametrize(("kind", "name", "edit", "said"), FAULTS)
def test_a_planted_fault_is_named(
    secured: Manifests, kind: str, name: str, edit: Edit, said: str
) -> None:
    objects = edited(secured, kind, name, edit)
    found = [*rules.problems(objects), *certificates.problems(objects)]
    assert any(said in one for one in found), found


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("Certificate", spec(dnsName=["teacher"])),
        ("Certificate", spec(usages=["client"])),
        ("Issuer", spec(acme={})),
    ],
)
def test_schemas_refuse_what_they_do_not_know(secured: Manifests, kind: str, edit: Edit) -> None:
    name = {"Certificate": "teacher", "Issuer": "stillhouse"}[kind]
    planted = edited(secured, kind, name, edit).of(kind)
    assert list(by_schema([one for one in planted if one["metadata"]["name"] == name]))


@pytest.mark.parametrize("name", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_are_programs_that_there_are(
    secured: Manifests, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their arguments are taken: a service that is not there is UNAVAILABLE, not wrong use."""
    for pods in rules.services(Objects(secured)):
        asked = pods.container[name]
        arguments = asked["exec"]["command"][3:]
        arguments[0] = "127.0.0.1:9"
        assert probe(arguments) == 1
        assert capsys.readouterr().out.strip() == "UNAVAILABLE"
        limit_s = float(arguments[arguments.index("--timeout-s") + 1])
        assert limit_s < asked["timeoutSeconds"]
