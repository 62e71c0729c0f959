"""Decodes JSON as Go's encoding/json does into a struct: strict about kinds, at ease about missing and unknown keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_INTEGER = re.compile(r"-?\d+")

STRING, INT, FLOAT, BOOL, TIME, ANY = "string", "int64", "float64", "bool", "time.Time", "any"
ZERO: Mapping[str, Any] = {STRING: "", INT: 0, FLOAT: 0.0, BOOL: False, TIME: "", ANY: None}


class Map(NamedTuple):
    """Go's `map[string]T`."""

    values: Any


class Number(str):
    """A JSON number as it is written: Go takes `1.0` for no integer."""


def decode(text: str, kind: Any) -> Any:
    """Decodes a document.

    Args:
        text: The document.
        kind: One of the words above, `[kind]`, `Map(kind)`, or a struct as a dict of kinds.

    Raises:
        TypeError: Go would return an UnmarshalTypeError.
        ValueError: The text is no JSON.
    """
    return convert(json.loads(text, parse_int=Number, parse_float=Number), kind)


def convert(value: Any, kind: Any, where: str = "$") -> Any:
    """Converts what was parsed; `where` is for the error."""
    if value is None:
        return {} if isinstance(kind, (dict, Map)) else [] if isinstance(kind, list) else ZERO[kind]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise _mismatch(value, "struct", where)
        given = {key.lower(): item for key, item in value.items()}
        return {key: convert(given.get(key.lower()), inner, f"{where}.{key}") for key, inner in kind.items()}
    if isinstance(kind, Map):
        if not isinstance(value, dict):
            raise _mismatch(value, "map", where)
        return {key: convert(item, kind.values, f"{where}.{key}") for key, item in value.items()}
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise _mismatch(value, "slice", where)
        return [convert(item, kind[0], f"{where}[{index}]") for index, item in enumerate(value)]
    return _scalar(value, kind, where)


def _scalar(value: Any, kind: str, where: str) -> Any:
    if kind == ANY:
        return plain(value)
    if kind == BOOL and isinstance(value, bool):
        return value
    if kind == INT and isinstance(value, Number) and _INTEGER.fullmatch(value):
        return int(value)
    if kind == FLOAT and isinstance(value, Number):
        return float(value)
    if kind == STRING and isinstance(value, str) and not isinstance(value, Number):
        return value
    if kind == TIME and not isinstance(value, Number) and isinstance(value, str) and _RFC_3339.fullmatch(value):
        return value
    raise _mismatch(value, kind, where)


def plain(value: Any) -> Any:
    """What Go makes of a value it knows nothing of: every number is a float64."""
    if isinstance(value, Number):
        return float(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _mismatch(value: Any, kind: str, where: str) -> TypeError:
    return TypeError(f"json: cannot unmarshal {value!r} into Go struct field {where} of type {kind}")
