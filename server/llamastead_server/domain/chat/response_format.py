"""The form an answer must take: free text, any JSON object, or JSON of a given schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_FORMATS = ("text", "json_object", "json_schema")
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_MAX_SCHEMA_CHARACTERS = 65_536
_MAX_DEPTH = 32
_SCHEMA_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "$defs", "definitions")


def check(value: Mapping[str, Any]) -> None:
    """Checks OpenAI's `response_format`.

    Raises:
        ValueError: The type is unknown, or the schema is missing, too large or not a JSON schema.
    """
    kind = value.get("type")
    if kind not in _FORMATS:
        raise ValueError(f"type {kind!r} is not one of {', '.join(_FORMATS)}")
    if kind != "json_schema":
        return
    wrapped = value.get("json_schema")
    if not isinstance(wrapped, Mapping) or not isinstance(wrapped.get("schema"), Mapping):
        raise ValueError('json_schema must be an object {"name", "schema"} whose schema is an object')
    try:
        size = len(json.dumps(wrapped["schema"], allow_nan=False))
    except (TypeError, ValueError):
        raise ValueError("the schema holds a value that is not JSON") from None
    if size > _MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"the schema has {size} characters; at most {_MAX_SCHEMA_CHARACTERS} are accepted")
    check_schema(wrapped["schema"], "schema")


def check_schema(value: Any, path: str) -> None:
    """Checks a JSON schema; `path` names it in errors.

    Raises:
        ValueError: It is none, or is nested too deep.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} must be an object")
    _check_schema(value, path, _MAX_DEPTH)


def schema(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema of a checked format; None when any answer will do."""
    if value is None or value["type"] != "json_schema":
        return None
    found: Mapping[str, Any] = value["json_schema"]["schema"]
    return found


def is_strict(value: Mapping[str, Any] | None) -> bool:
    """Whether a server that only tries to keep to a schema must keep to it; the engines here always do."""
    return value is not None and value["type"] == "json_schema" and value["json_schema"].get("strict") is True


def is_json_object(value: Mapping[str, Any] | None) -> bool:
    """Whether any JSON object is asked for."""
    return value is not None and value["type"] == "json_object"


def _check_schema(node: Any, path: str, depth: int) -> None:
    if isinstance(node, bool):
        return
    if not isinstance(node, Mapping):
        raise ValueError(f"{path} must be an object")
    if depth == 0:
        raise ValueError(f"the schema is nested deeper than {_MAX_DEPTH} levels")
    types = node.get("type", [])
    for name in types if isinstance(types, list) else [types]:
        if not isinstance(name, str) or name not in _TYPES:
            raise ValueError(f"{path}.type {name!r} is not one of {', '.join(sorted(_TYPES))}")
    for key in _SCHEMA_LISTS:
        branches = node.get(key, [])
        if not isinstance(branches, list):
            raise ValueError(f"{path}.{key} must be a list")
        for number, branch in enumerate(branches):
            _check_schema(branch, f"{path}.{key}.{number}", depth - 1)
    for key in _SCHEMA_MAPS:
        named = node.get(key, {})
        if not isinstance(named, Mapping):
            raise ValueError(f"{path}.{key} must be an object")
        for name, branch in named.items():
            _check_schema(branch, f"{path}.{key}.{name}", depth - 1)
    for key in ("items", "additionalProperties"):
        if key in node and not isinstance(node[key], list):
            _check_schema(node[key], f"{path}.{key}", depth - 1)
