"""The OpenAPI 3.1 document of the edge; `python -m services.gateway.http.openapi` prints it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.rpc import status_pb2
from stillhouse.common.v1 import info_pb2
from stillhouse.gateway.v1 import access_pb2, datasets_pb2

from services.gateway.http.comments import load_comments
from services.gateway.http.rules import Rule, load_rules
from services.gateway.http.schemas import Comment, Schema, Schemas, is_required

_VARIABLE = re.compile(r"\{[a-z0-9_.]+(?:=([^}]+))?\}")
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds, on 429 and 503."}}


def document() -> dict[str, Any]:
    """Return the document: the annotated RPCs, and the routes that are not RPCs."""
    comment = load_comments()
    schemas = Schemas(comment)
    paths: dict[str, dict[str, Any]] = {}
    for rule in load_rules():
        item = paths.setdefault(expand(rule.template), {})
        item[rule.verb.lower()] = _operation(rule, schemas, comment)
    for path, verb, operation in _others(schemas):
        paths.setdefault(path, {})[verb] = operation
    schemas.answer(status_pb2.Status.DESCRIPTOR)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stillhouse",
            "version": metadata.version("stillhouse"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.found.items())),
            "responses": {"Error": _error()},
        },
    }


def expand(template: str) -> str:
    """Return a path with a parameter per `*`: `/v1/projects/{project}/students/{student}:tune`."""
    return _VARIABLE.sub(lambda found: _expanded(found[1]) if found[1] else found[0], template)


def _expanded(pattern: str) -> str:
    parts = pattern.split("/")
    for at in range(1, len(parts)):
        if parts[at] == "*":
            parts[at] = f"{{{parts[at - 1].removesuffix('s')}}}"
    return "/".join(parts)


def _operation(rule: Rule, schemas: Schemas, comment: Comment) -> dict[str, Any]:
    method = rule.method
    in_path = {variable.field for variable in rule.variables}
    operation: dict[str, Any] = {
        "operationId": method.name,
        "tags": [method.containing_service.name],
        "parameters": _path_parameters(expand(rule.template)),
        "responses": {"200": _success(rule, schemas), "default": _default()},
    }
    if text := comment(method.full_name):
        operation["description"] = text
    if rule.has_body:
        schema = schemas.request(method.input_type, in_path)
        content = {"application/json": {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    else:
        fields = [f for f in method.input_type.fields if f.name not in in_path]
        operation["parameters"] += [_query(f, schemas, comment) for f in fields]
    return operation


def _query(field: Any, schemas: Schemas, comment: Comment) -> dict[str, Any]:
    found = {
        "name": field.json_name,
        "in": "query",
        "required": is_required(field),
        "schema": schemas.field(field, "Input"),
    }
    if text := comment(field.full_name):
        found["description"] = text
    return found


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{([^}]+)\}", path)
    ]


def _success(rule: Rule, schemas: Schemas) -> dict[str, Any]:
    if rule.bytes_field:
        return {"description": "The bytes.", "content": {"application/octet-stream": {}}}
    kind = "text/event-stream" if rule.is_stream else "application/json"
    said = "Server-sent events, one message each." if rule.is_stream else "The answer."
    return _answer(rule.method.output_type, schemas, kind, said)


def _answer(
    message: Descriptor, schemas: Schemas, kind: str = "application/json", said: str = "The answer."
) -> dict[str, Any]:
    return {"description": said, "content": {kind: {"schema": schemas.answer(message)}}}


def _default() -> Schema:
    return {"$ref": "#/components/responses/Error"}


def _error() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Status"}
    content = {"application/json": {"schema": schema}}
    return {"description": "What went wrong.", "headers": _RETRY, "content": content}


def _others(schemas: Schemas) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, verb and operation of the routes that are not RPCs with an annotation."""
    yield "/v1/info", "get", _other("GetInfo", "", _info(schemas), "Version and limits.")
    done: dict[str, Any] = {"description": "Done; the cookie is set or removed."}
    opened = _other("CreateSession", "", done, "Opens a session for the sender of a key.")
    yield "/v1/session", "post", opened
    yield "/v1/session", "delete", _other("EndSession", "", done, "Ends the session.")
    path = "/v1/projects/{project}/archives"
    answer = _answer(datasets_pb2.UploadArchiveResponse.DESCRIPTOR, schemas)
    upload = _other("UploadArchive", path, answer, "Uploads a zip or tar file as the body.")
    upload["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    yield path, "post", upload
    path = "/v1/projects/{project}/images/{digest}"
    image = {"description": "The picture.", "content": {"image/webp": {}}}
    thumbnail = _other("GetThumbnail", path, image, "Shows an image, or a part of it, in small.")
    thumbnail["parameters"][1]["schema"] = _DIGEST
    thumbnail["parameters"] += [
        _plain("sizePx", {"type": "integer", "minimum": 32, "maximum": 1024, "default": 160}),
        _plain("box", {"type": "string"}, "`left,top,right,bottom` as shares of the image."),
    ]
    yield path, "get", thumbnail


def _info(schemas: Schemas) -> dict[str, Any]:
    base = schemas.answer(info_pb2.GetInfoResponse.DESCRIPTOR)
    kind = schemas.field(access_pb2.WhoAmIResponse.DESCRIPTOR.fields_by_name["credential"])
    said = "Which credentials are taken; CREDENTIAL_KIND_NONE where the gateway asks nobody."
    more = {
        "type": "object",
        "properties": {
            "maxArchiveBytes": {"type": "string", "format": "int64"},
            "credentials": {"type": "array", "items": kind, "description": said},
        },
        "required": ["maxArchiveBytes", "credentials"],
    }
    content = {"application/json": {"schema": {"allOf": [base, more]}}}
    return {"description": "The answer.", "content": content}


def _other(name: str, path: str, success: dict[str, Any], text: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "tags": ["Edge"],
        "description": text,
        "parameters": _path_parameters(path),
        "responses": {"200": success, "default": _default()},
    }


def _plain(name: str, schema: Schema, text: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "in": "query", "schema": schema}
    return {**found, "description": text} if text else found


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
