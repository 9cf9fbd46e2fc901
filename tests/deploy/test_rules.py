"""The checks of deploy/ see what is planted: each rule is shown a fault that it must name."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from scripts.check_deploy import DEPLOY, OVERLAYS, by_schema, render
from scripts.deploy_checks import compose, rules
from scripts.deploy_checks.objects import Objects

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def production() -> list[dict[str, Any]]:
    return render(DEPLOY / "k8s" / "overlays" / "gpu-production")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_are_well(name: str) -> None:
    manifests = render(DEPLOY / "k8s" / "overlays" / name)
    assert not [*by_schema(manifests), *rules.problems(Objects(manifests))]


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_head_of_an_overlay_makes_every_secret_that_its_pods_cannot_do_without(
    name: str,
) -> None:
    folder = DEPLOY / "k8s" / "overlays" / name
    commands = (folder / "kustomization.yaml").read_text().partition("apiVersion")[0]
    made = {text.split()[0] for text in commands.split("create secret generic ")[1:]}
    wanted = set()
    for pods in Objects(render(folder)).pods:
        mounted = [volume["secret"] for volume in pods.spec["volumes"] if "secret" in volume]
        wanted |= {one["secretName"] for one in mounted if not one.get("optional")}
        sources = [entry.get("valueFrom", {}) for entry in pods.env.values()]
        keys = [one["secretKeyRef"] for one in sources if "secretKeyRef" in one]
        wanted |= {one["name"] for one in keys if not one.get("optional")}
    assert wanted
    assert wanted <= made


def edited(manifests: list[dict[str, Any]], kind: str, name: str, edit: Edit) -> Objects:
    """Return the objects with one of them changed."""
    found = Objects(copy.deepcopy(manifests))
    one = found.named(kind, name)
    assert one is not None
    edit(one)
    return found


def container(workload: dict[str, Any]) -> Any:
    return workload["spec"]["template"]["spec"]["containers"][0]


def variable(name: str, value: str) -> Edit:
    """Return an edit that sets a variable of the container."""

    def edit(workload: dict[str, Any]) -> None:
        entries = container(workload)["env"]
        entries[:] = [one for one in entries if one["name"] != name] + [
            {"name": name, "value": value}
        ]

    return edit


FAULTS: list[tuple[str, str, Edit, str]] = [
    ("Deployment", "teacher", variable("TEACHER_PROT", "1"), "TEACHER_PROT is no setting"),
    ("Deployment", "teacher", variable("TEACHER_THREADS", "many"), "valid integer"),
    ("StatefulSet", "gateway", variable("GATEWAY_TEACHER_ADDRESS", "dns:///techer:7101"), "techer"),
    ("StatefulSet", "gateway", variable("GATEWAY_TEACHER_ADDRESS", "dns:///teacher:7"), "port"),
    (
        "Deployment",
        "concepts",
        lambda one: container(one)["securityContext"].update(readOnlyRootFilesystem=False),
        "readOnlyRootFilesystem",
    ),
    (
        "Deployment",
        "concepts",
        lambda one: one["spec"]["template"]["spec"].pop("enableServiceLinks"),
        "enableServiceLinks",
    ),
    (
        "StatefulSet",
        "student",
        lambda one: one["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=30),
        "terminationGracePeriodSeconds",
    ),
    (
        "StatefulSet",
        "student",
        lambda one: container(one)["volumeMounts"].pop(),
        "is not mounted",
    ),
    (
        "Deployment",
        "teacher",
        lambda one: container(one)["readinessProbe"]["grpc"].update(port=7102),
        "readinessProbe asks port 7102",
    ),
    ("Deployment", "teacher", lambda one: container(one).update(image="a/b:latest"), "not pinned"),
    (
        "Deployment",
        "concepts",
        lambda one: container(one)["resources"]["limits"].update(memory="8Gi"),
        "more than half of 8Gi",
    ),
    ("Deployment", "teacher", variable("TEACHER_MAX_MODELS_BYTES", "0"), "or no limit"),
    (
        "Deployment",
        "teacher",
        lambda one: container(one)["resources"]["limits"].update(memory="32G"),
        "32G is not",
    ),
    ("Deployment", "teacher", lambda one: one["spec"].update(replicas=3), "beside its autoscaler"),
    ("NetworkPolicy", "teacher", lambda one: one["spec"].update(ingress=[]), "lets it call"),
    ("NetworkPolicy", "gateway-asks", lambda one: one["spec"].update(egress=[]), "lets it call"),
    (
        "PodDisruptionBudget",
        "student",
        lambda one: one["spec"].update(selector={"matchLabels": {"a": "b"}}),
        "chooses no pod",
    ),
    ("PersistentVolumeClaim", "weights", lambda one: one["metadata"].update(name="w"), "claim"),
    ("Service", "gateway", lambda one: one["spec"]["ports"][0].update(targetPort="x"), "port x"),
    ("ScaledObject", "teacher", lambda one: one["spec"]["scaleTargetRef"].update(name="x"), "no x"),
]


@pytest.mark.parametrize(("kind", "name", "edit", "said"), FAULTS)
def test_a_planted_fault_is_named(
    production: list[dict[str, Any]], kind: str, name: str, edit: Edit, said: str
) -> None:
    found = rules.problems(edited(production, kind, name, edit))
    assert any(said in one for one in found), found


@pytest.mark.parametrize(
    ("kind", "name", "edit"),
    [
        ("Deployment", "teacher", lambda one: one["spec"].update(replica=1)),
        ("ScaledObject", "teacher", lambda one: one["spec"].update(minReplicas=1)),
        ("PodMonitor", "stillhouse", lambda one: one.update(kind="PodMonitors")),
    ],
)
def test_schemas_refuse_what_they_do_not_know(
    production: list[dict[str, Any]], kind: str, name: str, edit: Edit
) -> None:
    assert list(by_schema(edited(production, kind, name, edit).manifests))


COMPOSE_FAULTS: list[tuple[Edit, str]] = [
    (lambda c: c["services"]["teacher"]["environment"].update(TEACHER_PROT="1"), "no setting"),
    (lambda c: c["services"]["student"].update(stop_grace_period="10s"), "stop_grace_period"),
    (lambda c: c["services"]["concepts-gpu"].update(networks=["mesh"]), "not there with gpu"),
    (lambda c: c["services"]["gateway"].update(networks=["mesh"]), "GATEWAY_DATABASE_URL"),
    (lambda c: c["services"]["gateway"]["depends_on"].pop("redis"), "wait for redis"),
    (lambda c: c["services"]["gateway"].update(ports=["7100:7100"]), "beyond this machine"),
    (lambda c: c["services"]["postgres"].update(ports=["127.0.0.1:1:1"]), "beyond this machine"),
    (lambda c: c["services"]["teacher"].update(read_only=False), "writable"),
    (lambda c: c["services"]["redis"].pop("healthcheck"), "no health check"),
]


@pytest.mark.parametrize(("edit", "said"), COMPOSE_FAULTS)
def test_a_fault_planted_in_compose_is_named(edit: Edit, said: str) -> None:
    parsed = copy.deepcopy(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))
    assert not compose.problems(parsed)
    edit(parsed)
    found = compose.problems(parsed)
    assert any(said in one for one in found), found


def test_the_build_context_holds_what_the_dockerfile_copies() -> None:
    lines = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == let_in


def test_an_overlay_that_names_what_is_not_there_is_refused(tmp_path: Any) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]")
    with pytest.raises(subprocess.CalledProcessError):
        render(tmp_path)
