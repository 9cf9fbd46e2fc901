"""What must hold in a rendered overlay beyond its schema; each rule yields what is wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scripts.deploy_checks.objects import Manifest, Objects, Pods
from services.common.settings import ServiceSettings
from services.concepts.settings import ConceptsSettings
from services.gateway.access import exposure
from services.gateway.settings import GatewaySettings
from services.student.settings import StudentSettings
from services.teacher.settings import TeacherSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "teacher": TeacherSettings,
    "concepts": ConceptsSettings,
    "student": StudentSettings,
    "gateway": GatewaySettings,
}
SECRETS = ("stillhouse-stores", "stillhouse-bucket", "stillhouse-access")
"""What whoever deploys makes; everything else must be in the overlay."""
CLOSING_S = 20
"""What a service may need to close after its calls have ended."""
_UNITS = {"": 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}
_MEMORY = re.compile(r"(\d+)(|Ki|Mi|Gi|Ti)")
PROBE = ("python", "-m", "services.common.probe")
ADDRESS = re.compile(r"dns:///([a-z-]+):(\d+)")
Rule = Callable[[Objects], Iterator[str]]


def problems(objects: Objects) -> list[str]:
    """Return all that is wrong with an overlay."""
    return [said for rule in RULES for said in rule(objects)]


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set the environment to `values` alone until the block ends."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def settings_of(service: str, values: dict[str, str]) -> tuple[ServiceSettings | None, list[str]]:
    """Return a service's settings under these variables, and what is wrong with the variables."""
    prefix, kind = f"{service.upper()}_", SETTINGS[service]
    known = {prefix + name.upper() for name in kind.model_fields}
    said = [
        f"{service}: {name} is no setting"
        for name in values
        if name.split("_")[0].lower() in SETTINGS and name not in known
    ]
    try:
        with environment(values):
            return kind(), said
    except ValueError as error:
        return None, [*said, f"{service}: {error}"]


def variables(pods: Pods) -> dict[str, str]:
    """Return the environment of a pod, with stand-ins for what only a cluster knows."""
    stand_ins = {"resourceFieldRef": "2", "fieldRef": f"{pods.name}-0", "secretKeyRef": "secret"}
    values: dict[str, str] = {}
    for name, entry in pods.env.items():
        if "value" in entry:
            values[name] = re.sub(
                r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), str(entry["value"])
            )
        else:
            (source,) = entry["valueFrom"]
            values[name] = stand_ins[source]
    return values


def settings_fit(objects: Objects) -> Iterator[str]:
    """Variables are settings of the service, and their values are taken."""
    for pods in services(objects):
        yield from settings_of(pods.name, variables(pods))[1]


def the_gateway_asks_who_calls(objects: Objects) -> Iterator[str]:
    """A gateway that would refuse to start, because it listens to everybody, is found here."""
    for pods in services(objects):
        settings, _ = settings_of(pods.name, variables(pods))
        if isinstance(settings, GatewaySettings) and (said := exposure.refusal(settings)):
            yield f"{pods.name}: {said}"


def pods_have_no_rights(objects: Objects) -> Iterator[str]:
    """No root, no capabilities, no writable root file system, no token of the cluster."""
    for pods in objects.pods:
        pod, own = pods.spec.get("securityContext", {}), pods.container.get("securityContext", {})
        held = {
            "runAsNonRoot": pod.get("runAsNonRoot") is True,
            "a numeric user": pod.get("runAsUser", 0) > 0,
            "seccompProfile": pod.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "dropped capabilities": own.get("capabilities", {}).get("drop") == ["ALL"],
            "automountServiceAccountToken": pods.spec.get("automountServiceAccountToken") is False,
            "enableServiceLinks": pods.spec.get("enableServiceLinks") is False,
        }
        yield from (f"{pods.name}: {what} is not set" for what, holds in held.items() if not holds)


def pods_are_bounded(objects: Objects) -> Iterator[str]:
    """Requests and a memory limit; an image with a tag; mounts of volumes that exist."""
    for pods in objects.pods:
        given = pods.container.get("resources", {})
        if not {"cpu", "memory"} <= given.get("requests", {}).keys():
            yield f"{pods.name}: requests no processor or memory"
        if "memory" not in given.get("limits", {}):
            yield f"{pods.name}: has no limit of memory"
        tag = pods.container["image"].rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            yield f"{pods.name}: image {pods.container['image']} is not pinned"
        mounted = {mount["name"] for mount in pods.container.get("volumeMounts", [])}
        yield from (f"{pods.name}: volume {one} is missing" for one in mounted - pods.volumes)
        yield from (f"{pods.name}: volume {one} is not mounted" for one in pods.volumes - mounted)


def models_fit_the_memory(objects: Objects) -> Iterator[str]:
    """The weights that a service may keep take half of its memory limit at most: one over the limit
    is killed, however well the service keeps its own budget."""
    for pods in services(objects):
        settings, _ = settings_of(pods.name, variables(pods))
        limit = str(pods.container.get("resources", {}).get("limits", {}).get("memory", ""))
        if not isinstance(settings, TeacherSettings | ConceptsSettings) or not limit:
            continue
        found, budget = _MEMORY.fullmatch(limit), settings.max_models_bytes
        if found is None:
            yield f"{pods.name}: limit of memory {limit} is not a number of Ki, Mi, Gi or Ti"
        elif not 0 < 2 * budget <= int(found[1]) << _UNITS[found[2]]:
            said = f"MAX_MODELS_BYTES {budget} is more than half of {limit}, or no limit"
            yield f"{pods.name}: {said}"


def claims_exist(objects: Objects) -> Iterator[str]:
    """Claims, accounts and secrets that pods name are there, or are known to come from outside."""
    made = {one["spec"]["secretName"] for one in objects.of("Certificate")}
    for pods in objects.pods:
        for volume in pods.spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            secret = volume.get("secret", {}).get("secretName")
            if secret and secret not in (*SECRETS, *made):
                yield f"{pods.name}: secret {secret} is unknown"
            if claim and not objects.named("PersistentVolumeClaim", claim):
                yield f"{pods.name}: claim {claim} is missing"
        account = pods.spec.get("serviceAccountName")
        if account and not objects.named("ServiceAccount", account):
            yield f"{pods.name}: account {account} is missing"
        for secret in _secrets(pods):
            if secret not in SECRETS:
                yield f"{pods.name}: secret {secret} is unknown"


def probes_ask_the_service(objects: Objects) -> Iterator[str]:
    """All three probes by gRPC at the port of the settings; by a program where that speaks TLS,
    which Kubernetes' own probes do not."""
    for pods in services(objects):
        settings, _ = settings_of(pods.name, variables(pods))
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = pods.container.get(probe, {})
            port = asked.get("grpc", {}).get("port")
            command = asked.get("exec", {}).get("command", [])
            if settings and settings.tls and command[:4] != [*PROBE, pods.name]:
                yield f"{pods.name}: {probe} speaks no TLS, and the service nothing else"
            elif settings and not settings.tls and port != settings.port:
                yield f"{pods.name}: {probe} asks port {port}, the service has {settings.port}"


def pods_get_time_to_drain(objects: Objects) -> Iterator[str]:
    """The grace period covers the pause before SIGTERM, the drain, and closing."""
    for pods in services(objects):
        settings, _ = settings_of(pods.name, variables(pods))
        pause_s = pods.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        needed_s = pause_s + (settings.drain_s if settings else 0) + CLOSING_S
        if pods.spec.get("terminationGracePeriodSeconds", 30) < needed_s:
            yield f"{pods.name}: terminationGracePeriodSeconds is less than {needed_s:.0f}"


def selectors_choose(objects: Objects) -> Iterator[str]:
    """Whatever selects pods selects some; workloads select their own."""
    for pods in objects.pods:
        if pods.owner not in [
            one.owner for one in objects.selected(pods.owner["spec"]["selector"])
        ]:
            yield f"{pods.name}: its selector does not choose its own pods"
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for one in objects.of(kind):
            if not objects.selected(one["spec"][key]):
                yield f"{kind} {one['metadata']['name']}: chooses no pod"


def services_have_pods(objects: Objects) -> Iterator[str]:
    """A Service's ports are ports of pods behind it; each of ours has a disruption budget."""
    for service in objects.of("Service"):
        name = service["metadata"]["name"]
        there = {port for pods in objects.behind(name) for port in pods.ports}
        wanted = {port["targetPort"] for port in service["spec"]["ports"]}
        yield from (f"service {name}: nothing has port {port}" for port in wanted - there)
    for pods in services(objects):
        if not objects.named("PodDisruptionBudget", pods.name):
            yield f"{pods.name}: has no disruption budget"


def addresses_are_reachable(objects: Objects) -> Iterator[str]:
    """Every `dns:///NAME:PORT` is a headless service, and policies let the call through."""
    for pods in services(objects):
        for name, value in variables(pods).items():
            found = ADDRESS.fullmatch(value)
            if found is None:
                continue
            service = objects.named("Service", found[1])
            if service is None or service["spec"].get("clusterIP") != "None":
                yield f"{pods.name}: {name} names {found[1]}, which is no headless service"
                continue
            for callee in objects.behind(found[1]):
                if callee.ports["grpc"] != int(found[2]):
                    yield f"{pods.name}: {name} has another port than {callee.name}"
                if not objects.may_call(pods, callee, "grpc"):
                    yield f"{pods.name}: no network policy lets it call {callee.name}"


def autoscalers_scale(objects: Objects) -> Iterator[str]:
    """An autoscaler's target exists, and its manifest does not set the replicas as well."""
    for scaler in [*objects.of("ScaledObject"), *objects.of("HorizontalPodAutoscaler")]:
        target = scaler["spec"]["scaleTargetRef"]
        found = objects.named(target.get("kind", "Deployment"), target["name"])
        if found is None:
            yield f"{scaler['kind']} {scaler['metadata']['name']}: no {target['name']}"
        elif "replicas" in found["spec"]:
            yield f"{target['name']}: sets replicas beside its autoscaler"


def services(objects: Objects) -> Iterator[Pods]:
    """Yield the pods of our own services."""
    yield from (pods for pods in objects.pods if pods.name in SETTINGS)


def _secrets(pods: Pods) -> Iterator[str]:
    for entry in pods.env.values():
        reference: Manifest = entry.get("valueFrom", {}).get("secretKeyRef", {})
        if reference:
            yield str(reference["name"])
    for source in pods.container.get("envFrom", []):
        yield str(source["secretRef"]["name"])


RULES: tuple[Rule, ...] = (
    settings_fit,
    the_gateway_asks_who_calls,
    pods_have_no_rights,
    pods_are_bounded,
    models_fit_the_memory,
    claims_exist,
    probes_ask_the_service,
    pods_get_time_to_drain,
    selectors_choose,
    services_have_pods,
    addresses_are_reachable,
    autoscalers_scale,
)
