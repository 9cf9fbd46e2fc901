"""Which RPC an HTTP request means: the `google.api.http` annotations, read from the descriptors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from stillhouse.gateway.v1 import (
    access_pb2,
    datasets_pb2,
    jobs_pb2,
    models_pb2,
    projects_pb2,
    students_pb2,
)

_FILES = (access_pb2, datasets_pb2, jobs_pb2, models_pb2, projects_pb2, students_pb2)
_VARIABLE = re.compile(r"\{([a-z0-9_.]+)(?:=([^}]+))?\}")
_SEGMENT = "[^/:]+"


@dataclass(frozen=True)
class Variable:
    """A field that the path carries: `{name=projects/*/students/*}`."""

    field: str
    pattern: str
    """As in the template: `*`, or literals and `*` joined by `/`."""


@dataclass(frozen=True)
class Rule:
    """One binding of an RPC to an HTTP method and a path."""

    method: MethodDescriptor
    verb: str
    template: str
    has_body: bool
    variables: tuple[Variable, ...]
    regex: re.Pattern[str]

    @property
    def rpc(self) -> str:
        """Return the path gRPC calls the method by."""
        service = self.method.containing_service
        return f"/{service.full_name}/{self.method.name}"

    @property
    def request_class(self) -> type[Message]:
        """Return the class of the request."""
        return message_factory.GetMessageClass(self.method.input_type)

    @property
    def response_class(self) -> type[Message]:
        """Return the class of the response, or of each message of a stream."""
        return message_factory.GetMessageClass(self.method.output_type)

    @property
    def is_stream(self) -> bool:
        """Return whether the server streams."""
        return bool(self.method.server_streaming)

    @property
    def bytes_field(self) -> str:
        """Return the field of a stream that carries nothing but bytes, else an empty string."""
        fields = self.method.output_type.fields
        plain = len(fields) == 1 and fields[0].type == FieldDescriptor.TYPE_BYTES
        return fields[0].name if self.is_stream and plain else ""


def field_of(message: Descriptor, name: str) -> FieldDescriptor | None:
    """Return a field by its name in the proto or in JSON."""
    found = message.fields_by_name.get(name)
    if found is not None:
        return found
    return next((field for field in message.fields if field.json_name == name), None)


def load_rules() -> list[Rule]:
    """Return the rules of all annotated RPCs of the gateway, in the order of the protos."""
    services = [s for file in _FILES for s in file.DESCRIPTOR.services_by_name.values()]
    return [rule for service in services for rule in _rules(service.methods)]


def _rules(methods: Iterable[MethodDescriptor]) -> Iterable[Rule]:
    for method in methods:
        options = method.GetOptions()
        if not options.HasExtension(annotations_pb2.http):
            continue
        http = options.Extensions[annotations_pb2.http]
        for one in (http, *http.additional_bindings):
            yield _rule(method, one)


def _rule(method: MethodDescriptor, http: Any) -> Rule:
    verb = http.WhichOneof("pattern")
    template = getattr(http, verb)
    if verb == "custom" or http.body not in ("", "*") or method.client_streaming:
        raise ValueError(f"{method.full_name}: this HTTP rule is not supported")
    variables = tuple(Variable(f, p or "*") for f, p in _VARIABLE.findall(template))
    return Rule(method, verb.upper(), template, http.body == "*", variables, _regex(template))


def _regex(template: str) -> re.Pattern[str]:
    """Compile a template; its groups are the variables, in order."""
    parts, at = [], 0
    for found in _VARIABLE.finditer(template):
        parts.append(_literal(template[at : found.start()]))
        parts.append(f"({_literal(found[2] or '*')})")
        at = found.end()
    return re.compile("".join([*parts, _literal(template[at:])]))


def _literal(text: str) -> str:
    return _SEGMENT.join(re.escape(part) for part in text.split("*"))


class Rules:
    """Looks rules up by request."""

    def __init__(self, rules: Iterable[Rule] | None = None) -> None:
        self._rules = list(load_rules() if rules is None else rules)

    def find(self, verb: str, path: str) -> tuple[Rule, dict[str, str]] | None:
        """Return the rule of a request and the fields its path carries."""
        for rule in self._rules:
            found = rule.regex.fullmatch(path) if rule.verb == verb else None
            if found:
                names = (variable.field for variable in rule.variables)
                return rule, dict(zip(names, found.groups(), strict=True))
        return None

    def verbs(self, path: str) -> list[str]:
        """Return the HTTP methods that a path has."""
        return sorted({rule.verb for rule in self._rules if rule.regex.fullmatch(path)})
