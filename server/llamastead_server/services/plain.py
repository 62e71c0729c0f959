"""Protobuf messages as plain data and back, with the numbers a person wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value

from llamastead_server.domain.errors import InvalidRequest

_EXACT = 2**53


def from_struct(struct: Struct) -> dict[str, Any]:
    """A Struct's content; whole numbers become `int`s again, which a Struct holds as doubles."""
    return _dictionary(struct)


def to_struct(content: Mapping[str, Any]) -> Struct:
    """Plain JSON data as a Struct."""
    return ParseDict(dict(content), Struct())


def to_value(content: Any) -> Value:
    """A JSON value, null included."""
    return ParseDict(content, Value())


def given(message: Message) -> dict[str, Any]:
    """The fields of a message that its sender set, by their proto names."""
    return _dictionary(message)


def to_json(message: Message) -> dict[str, Any]:
    """A message as the gateway would print it: proto names, and fields without presence though they are empty."""
    content: dict[str, Any] = _whole_numbers(
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )
    return content


def _dictionary(message: Message) -> dict[str, Any]:
    try:
        content: dict[str, Any] = _whole_numbers(MessageToDict(message, preserving_proto_field_name=True))
    except (SerializeToJsonError, ValueError):
        raise InvalidRequest("The request holds a number that is not finite (NaN or Infinity).") from None
    return content


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(entry) for entry in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value
