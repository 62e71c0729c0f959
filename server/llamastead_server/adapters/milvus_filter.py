"""Metadata as Milvus sees it: encoded so that no value can break out of a filter expression.

Milvus Lite has no expression templates, and its string literals have no escape for control characters.
So strings are percent-encoded, one to one, both when they are stored and when they are asked for: what
stands in an expression is letters, digits, spaces and a few harmless signs, whatever a client sent. The
plain text and metadata are kept in the SQL database.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.ports import Chunk

ENCODED_LENGTH = 1024
"""Most characters of an encoded string; longer ones are stored as their hash."""
NO_PAGE = -1
"""Page of a chunk that has none; Milvus Lite has no null."""

_STRING_COLUMNS = {
    "dataset": "dataset",
    "file_hash": "file_hash",
    "document_id": "file_hash",
    "document_type": "document_type",
    "filename": "filename",
    "file_name": "filename",
    "source": "filename",
}
_NUMBER_COLUMNS = {"page": "page", "ordinal": "ordinal", "chunk_index": "ordinal"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_. -]{0,99}")
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._-]")
_NOTHING = 'id == ""'
_MOST_FIELDS = 20
_MOST_VALUES = 100
_LONGEST_LIST = 1000
_LARGEST_INT = 2**63 - 1


def encode(value: str) -> str:
    """Writes a string with letters, digits, ` `, `.`, `_`, `-` and `%` only; different strings stay different."""
    encoded = _UNSAFE.sub(lambda match: _percent(match[0]), value)
    if len(encoded) <= ENCODED_LENGTH:
        return encoded
    # No encoded string holds a '+', so a hash is never mistaken for one.
    return "sha256+" + hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()


def document_type(chunk: Chunk) -> str:
    """The chunk's `document_type` metadata, else its file's extension in lower case without the dot."""
    named = chunk.metadata.get("document_type")
    return named if isinstance(named, str) else PurePath(chunk.filename).suffix[1:].lower()


def filterable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that filters can name: text, numbers, booleans and lists of them, under names that pass the gate."""
    found: dict[str, Any] = {}
    for key, value in metadata.items():
        if not _NAME.fullmatch(key):
            continue
        if isinstance(value, list | tuple):
            found[encode(key)] = [_stored(item) for item in value[:_LONGEST_LIST] if _is_scalar(item)]
        elif _is_scalar(value):
            found[encode(key)] = _stored(value)
    return found


def render(filters: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    """Renders metadata filters as a Milvus expression; no filters give an empty one.

    Every field must be equal to its value, or to one of them if the value is a list; a field that is a list must hold
    it. Values of another type than the field's are never equal. Of the datasets `without` there is nothing.

    Raises:
        InvalidRequest: A name or value is not one that can be filtered by.
    """
    if len(filters) > _MOST_FIELDS:
        raise InvalidRequest(f"metadata_filters has {len(filters)} fields; the most is {_MOST_FIELDS}.")
    conditions = [_condition(name, value) for name, value in filters.items()]
    if hidden := ", ".join(f'"{encode(name)}"' for name in without):
        conditions.append(f"dataset not in [{hidden}]")
    return " and ".join(conditions)


def _condition(name: str, value: Any) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"Invalid field name {name[:80]!r} in metadata_filters: use up to 100 letters, digits, '_', '.', '-' or "
            "spaces, starting with a letter or '_'.",
            details={"field": "metadata_filters"},
        )
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if not 1 <= len(values) <= _MOST_VALUES:
        raise InvalidRequest(
            f"metadata_filters.{name} has {len(values)} values; give 1 to {_MOST_VALUES}.",
            details={"field": "metadata_filters"},
        )
    # One comparison per value: a list of several types crashes the evaluation of `in`.
    return "(" + " or ".join(dict.fromkeys(_comparison(name, item) for item in values)) + ")"


def _comparison(name: str, value: Any) -> str:
    if not _is_scalar(value):
        raise InvalidRequest(
            f"metadata_filters.{name} must be a text, a finite number, a boolean, or a list of these.",
            details={"field": "metadata_filters"},
        )
    if name in _STRING_COLUMNS:
        return f'{_STRING_COLUMNS[name]} == "{encode(value)}"' if isinstance(value, str) else _NOTHING
    if name in _NUMBER_COLUMNS:
        whole = not isinstance(value, str | bool) and value == int(value) and value >= 0
        return f"{_NUMBER_COLUMNS[name]} == {int(value)}" if whole else _NOTHING
    field, literal = f'meta["{encode(name)}"]', _literal(value)
    # Of a list, such as `authors`, one entry must be equal.
    return f"{field} == {literal} or json_contains({field}, {literal})"


def _literal(value: str | float | bool) -> str:
    if isinstance(value, str):
        return f'"{encode(value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    whole = value == int(value) and abs(value) <= 2**53
    return str(int(value)) if whole or isinstance(value, int) else repr(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and _fits(value)


def _stored(value: str | float | bool) -> str | float | bool:
    return encode(value) if isinstance(value, str) else value


def _fits(value: str | float | bool) -> bool:
    if isinstance(value, str):
        return True
    return abs(value) <= _LARGEST_INT if isinstance(value, int) else math.isfinite(value)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
