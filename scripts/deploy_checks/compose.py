"""What must hold in compose.yaml beyond its schema."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scripts.deploy_checks.objects import Manifest
from scripts.deploy_checks.rules import CLOSING_S, settings_of
from services.gateway.access import exposure
from services.gateway.settings import GatewaySettings

_ADDRESS = re.compile(r"[a-z+]+://(?:[^@/]*@)?/?([a-z-]+):(\d+).*")
_SECONDS = re.compile(r"(\d+)s")


def problems(compose: Manifest) -> list[str]:
    """Return all that is wrong with a compose file, its anchors and merges resolved."""
    services: dict[str, Manifest] = compose["services"]
    rules = (_settings_fit, _addresses_exist, _own_are_confined, _waits_for_health, _stays_inside)
    return [said for rule in rules for said in rule(services)]


def _ours(services: dict[str, Manifest]) -> Iterator[tuple[str, str, Manifest]]:
    """Yield (name in the file, service, definition) of what is built from our image."""
    for name, service in services.items():
        if "build" in service:
            yield name, str(service["build"]["args"]["SERVICE"]), service


def _settings_fit(services: dict[str, Manifest]) -> Iterator[str]:
    for name, kind, service in _ours(services):
        values = {key: _filled(str(value)) for key, value in service["environment"].items()}
        settings, said = settings_of(kind, values)
        yield from (f"{name}: {one}" for one in said)
        if isinstance(settings, GatewaySettings) and (why := exposure.refusal(settings)):
            yield f"{name}: {why}"
        grace = _SECONDS.fullmatch(str(service.get("stop_grace_period", "10s")))
        if settings and (grace is None or int(grace[1]) < settings.drain_s + CLOSING_S):
            yield f"{name}: stop_grace_period is less than drain_s and {CLOSING_S} s to close"


def _filled(value: str) -> str:
    """A value as compose fills it in where no variable is set but those that must be."""
    value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    return re.sub(r"\$\{\w+(:\?[^}]*)?\}", "secret", value)


def _addresses_exist(services: dict[str, Manifest]) -> Iterator[str]:
    """Addresses are names that answer in every profile, on a network of the caller's."""
    for name, _, service in _ours(services):
        profiles = service.get("profiles") or ["cpu", "gpu"]
        for key, value in service["environment"].items():
            found = _ADDRESS.fullmatch(_filled(str(value)))
            for profile in profiles if found else []:
                assert found is not None
                if not _answers(services, found[1], set(service["networks"]), profile):
                    yield f"{name}: {key} names {found[1]}, which is not there with {profile}"


def _answers(services: dict[str, Manifest], wanted: str, networks: set[str], profile: str) -> bool:
    for name, service in services.items():
        if profile not in service.get("profiles", [profile]):
            continue
        given = service["networks"]
        aliases = given if isinstance(given, dict) else dict.fromkeys(given)
        for network in networks & set(aliases):
            if wanted in [name, *((aliases[network] or {}).get("aliases", []))]:
                return True
    return False


def _own_are_confined(services: dict[str, Manifest]) -> Iterator[str]:
    for name, _, service in _ours(services):
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
            yield f"{name}: its root is writable, or it has capabilities"


def _waits_for_health(services: dict[str, Manifest]) -> Iterator[str]:
    """The gateway waits until all it needs is well; what we do not build says how to tell."""
    gates = services["gateway"]["depends_on"]
    for name, service in services.items():
        if name != "gateway" and gates.get(name, {}).get("condition") != "service_healthy":
            yield f"gateway: does not wait for {name} to be healthy"
        if "build" not in service and "healthcheck" not in service:
            yield f"{name}: has no health check"


def _stays_inside(services: dict[str, Manifest]) -> Iterator[str]:
    for name, service in services.items():
        for port in service.get("ports", []):
            if name != "gateway" or not str(port).startswith("127.0.0.1:"):
                yield f"{name}: {port} is published beyond this machine"
