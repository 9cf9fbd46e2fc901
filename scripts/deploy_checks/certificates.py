"""What must hold where services speak mutual TLS by certificates of cert-manager; each rule yields
what is wrong. cert-manager's own types have no schema beyond ours, so names are followed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scripts.deploy_checks.objects import Manifest, Objects, Pods
from scripts.deploy_checks.rules import ADDRESS, Rule, services, settings_of, variables
from services.common.settings import ServiceSettings

_FILES = {"tls_cert": "tls.crt", "tls_key": "tls.key", "tls_ca": "ca.crt"}
"""Settings, and what cert-manager calls these files in a secret."""
_USAGES = {"server auth", "client auth"}


def problems(objects: Objects) -> list[str]:
    """Return all that is wrong with an overlay's certificates."""
    return [said for rule in RULES for said in rule(objects)]


def certificate_of(objects: Objects, pods: Pods) -> Manifest | None:
    """Return the Certificate whose secret is mounted where a service looks for its own."""
    settings = _settings(pods)
    folder = str(settings.tls_cert.parent) if settings and settings.tls_cert else ""
    mounts = pods.container.get("volumeMounts", [])
    names = {mount["name"] for mount in mounts if mount["mountPath"] == folder}
    secrets = {
        volume["secret"]["secretName"]
        for volume in pods.spec.get("volumes", [])
        if volume["name"] in names and "secret" in volume
    }
    made = (one for one in objects.of("Certificate") if one["spec"]["secretName"] in secrets)
    return next(made, None)


def all_speak_tls_or_none(objects: Objects) -> Iterator[str]:
    """A service that speaks it cannot call one that does not; nor is it told to trust anybody."""
    found = {pods.name: _settings(pods) for pods in services(objects)}
    speaking = {name for name, one in found.items() if one and one.peer_tls}
    if not speaking and not list(objects.of("Certificate")):
        return
    for name, settings in found.items():
        if name not in speaking:
            yield f"{name}: has no certificates, while others have"
        elif settings and settings.trusted_network:
            yield f"{name}: has certificates, and trusts its network all the same"


def files_are_mounted(objects: Objects) -> Iterator[str]:
    """The settings name the files of a secret that a Certificate makes."""
    for pods in services(objects):
        settings = _settings(pods)
        if settings is None or settings.tls is None:
            continue
        paths = {name: getattr(settings, name) for name in _FILES}
        for name, path in paths.items():
            if path != Path(settings.tls.cert.parent, _FILES[name]):
                yield f"{pods.name}: {name} is {path}, not {_FILES[name]} beside the others"
        if certificate_of(objects, pods) is None:
            yield f"{pods.name}: no Certificate makes what is mounted at {settings.tls.cert.parent}"


def certificates_have_an_issuer(objects: Objects) -> Iterator[str]:
    """Issuers are there, and an authority's secret is made by a Certificate that is one."""
    for one in objects.of("Certificate"):
        if not objects.named("Issuer", one["spec"]["issuerRef"]["name"]):
            yield f"Certificate {one['metadata']['name']}: its issuer is missing"
    authorities = {
        one["spec"]["secretName"] for one in objects.of("Certificate") if one["spec"].get("isCA")
    }
    for one in objects.of("Issuer"):
        secret = one["spec"].get("ca", {}).get("secretName")
        if secret and secret not in authorities:
            yield f"Issuer {one['metadata']['name']}: no authority makes {secret}"


def services_serve_and_call(objects: Objects) -> Iterator[str]:
    """A service shows one certificate to those whom it calls and to those who call it."""
    for pods in services(objects):
        certificate = certificate_of(objects, pods)
        missing = _USAGES - set(certificate["spec"].get("usages", [])) if certificate else set()
        yield from (f"{pods.name}: its certificate is not for {usage}" for usage in sorted(missing))


def callers_are_known_by_name(objects: Objects) -> Iterator[str]:
    """A certificate has the name by which its service is called, and one by which it may call."""
    for pods in services(objects):
        own = certificate_of(objects, pods)
        for value in variables(pods).values() if own else []:
            found = ADDRESS.fullmatch(value)
            for callee in objects.behind(found[1]) if found else []:
                assert found is not None
                theirs, settings = certificate_of(objects, callee), _settings(callee)
                if theirs and found[1] not in _names(theirs):
                    yield f"{callee.name}: its certificate has not the name {found[1]}"
                let_in = set(settings.tls_clients) if settings else set()
                if own and let_in and not let_in & _names(own):
                    yield f"{callee.name}: tls_clients keep {pods.name} out"


def _settings(pods: Pods) -> ServiceSettings | None:
    return settings_of(pods.name, variables(pods))[0]


def _names(certificate: Manifest) -> set[str]:
    return {certificate["spec"]["commonName"], *certificate["spec"].get("dnsNames", [])}


RULES: tuple[Rule, ...] = (
    all_speak_tls_or_none,
    files_are_mounted,
    certificates_have_an_issuer,
    services_serve_and_call,
    callers_are_known_by_name,
)
