"""The objects of a rendered overlay, and how they refer to each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """The pods of a Deployment or StatefulSet."""

    owner: Manifest

    @property
    def name(self) -> str:
        return str(self.owner["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.owner["spec"]["template"]["metadata"]["labels"])

    @property
    def spec(self) -> Manifest:
        return dict(self.owner["spec"]["template"]["spec"])

    @property
    def container(self) -> Manifest:
        """The pod's only container."""
        (one,) = self.spec["containers"]
        return dict(one)

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}

    @property
    def env(self) -> dict[str, Manifest]:
        return {entry["name"]: entry for entry in self.container.get("env", [])}

    @property
    def volumes(self) -> set[str]:
        """Names that mounts may use."""
        claims = self.owner["spec"].get("volumeClaimTemplates", [])
        names = {volume["name"] for volume in self.spec.get("volumes", [])}
        return names | {claim["metadata"]["name"] for claim in claims}


class Objects:
    """All objects of one overlay."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.manifests = manifests
        self.pods = [Pods(one) for one in manifests if one["kind"] in ("Deployment", "StatefulSet")]

    def of(self, kind: str) -> Iterator[Manifest]:
        """Yield the objects of a kind."""
        yield from (one for one in self.manifests if one["kind"] == kind)

    def named(self, kind: str, name: str) -> Manifest | None:
        """Return an object, None where there is none of that name."""
        return next((one for one in self.of(kind) if one["metadata"]["name"] == name), None)

    def selected(self, selector: Manifest) -> list[Pods]:
        """Return the pods that a label selector (matchLabels, matchExpressions) chooses."""
        return [one for one in self.pods if matches(selector, one.labels)]

    def behind(self, service: str) -> list[Pods]:
        """Return the pods of a Service."""
        found = self.named("Service", service)
        return self.selected({"matchLabels": found["spec"]["selector"]}) if found else []

    def may_call(self, caller: Pods, callee: Pods, port: str) -> bool:
        """Whether the network policies let a call through, on both sides of it."""
        out = self._allows(caller, callee, port, direction="egress")
        return out and self._allows(callee, caller, port, direction="ingress", of=callee)

    def _allows(
        self, subject: Pods, other: Pods, port: str, *, direction: str, of: Pods | None = None
    ) -> bool:
        number = (of or other).ports[port]
        policies = [
            policy["spec"]
            for policy in self.of("NetworkPolicy")
            if direction.capitalize() in policy["spec"]["policyTypes"]
            and matches(policy["spec"]["podSelector"], subject.labels)
        ]
        rules = [rule for policy in policies for rule in policy.get(direction, [])]
        peers = "to" if direction == "egress" else "from"
        return not policies or any(
            _names(rule.get(peers), other) and _opens(rule.get("ports"), port, number)
            for rule in rules
        )


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector chooses these labels; an empty one chooses all."""
    wanted = selector.get("matchLabels", {}).items()
    return wanted <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])
    )


def _names(peers: list[Manifest] | None, other: Pods) -> bool:
    return peers is None or any(
        "namespaceSelector" not in peer
        and "podSelector" in peer
        and matches(peer["podSelector"], other.labels)
        for peer in peers
    )


def _opens(ports: list[Manifest] | None, name: str, number: int) -> bool:
    return ports is None or any(port["port"] in (name, number) for port in ports)
