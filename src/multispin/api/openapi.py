"""The OpenAPI document of the endpoints, made of the structs that they read and write."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from multispin.api.dialects import Chat, Dialect, Text
from multispin.api.errors import ErrorAnswer
from multispin.api.openai_answers import Model, Models

_DIALECTS: tuple[Dialect, ...] = (Chat(), Text())
_ANY_JSON = {"content": {"application/json": {"schema": {"type": "object"}}}}


def document(targets: Sequence[str]) -> dict[str, Any]:
    """``targets``: names of which requests must give one; none: they are not known yet."""
    structs: list[type[msgspec.Struct]] = [ErrorAnswer, Model, Models]
    for dialect in _DIALECTS:
        structs += [dialect.request, dialect.whole, dialect.chunk]
    _, schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    if targets:
        for dialect in _DIALECTS:
            schemas[dialect.request.__name__]["properties"]["model"]["enum"] = list(targets)
    paths = {dialect.path: {"post": _post(dialect)} for dialect in _DIALECTS}
    paths["/v1/models"] = {"get": _get("the models that answer here, and how", Models)}
    paths["/v1/models/{name}"] = {
        "get": {**_get("the same, one entry", Model), "parameters": [_NAME]}
    }
    paths["/health"] = {
        "get": {
            "summary": "200 while texts can be written",
            "responses": {
                "200": {"description": "ready", **_ANY_JSON},
                "503": {"description": "a model loads, or the link is down", **_ANY_JSON},
            },
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "multispin", "version": version("multispin")},
        "paths": paths,
        "components": {"schemas": schemas},
    }


_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}


def _post(dialect: Dialect) -> dict[str, Any]:
    body = {"required": True, "content": _json(dialect.request)}
    events = {"text/event-stream": {"schema": _event(dialect.chunk)}}
    written = {"description": "the answers", "content": {**_json(dialect.whole), **events}}
    return {"requestBody": body, "responses": {"200": written, **_REFUSALS}}


def _get(summary: str, answer: type[msgspec.Struct]) -> dict[str, Any]:
    found = {"description": summary, "content": _json(answer)}
    return {"summary": summary, "responses": {"200": found, **_REFUSALS}}


def _json(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(struct)}}


def _event(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """A server-sent event, as OpenAPI 3.2 describes one; the last one's data is [DONE]."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": _ref(struct),
    }
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _ref(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


_REFUSALS = {
    "4XX": {"description": "what is wrong, and with which field", "content": _json(ErrorAnswer)},
    "503": {"description": "not now: Retry-After says when", "content": _json(ErrorAnswer)},
}
