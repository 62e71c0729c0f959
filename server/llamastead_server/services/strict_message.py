"""Messages from JSON, with no field passed over: the gateway drops those that a message does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.services import plain

M = TypeVar("M", bound=Message)
_LONGEST_NAME = 100


def read(sent: Struct, message: M) -> M:
    """Fills a message from JSON.

    Raises:
        InvalidRequest: Names every field that the message does not have, or the first that does not fit.
    """
    content = plain.from_struct(sent)
    unknown = dict(_unknown(content, message.DESCRIPTOR, ""))
    if unknown:
        found = "; ".join(f"{name} {reason}" for name, reason in unknown.items())
        raise InvalidRequest(f"Nothing was done: {found}.", details=unknown)
    try:
        return ParseDict(content, message)
    except ParseError as error:
        raise InvalidRequest(f"The request cannot be read: {error}") from None


def _unknown(content: Mapping[str, Any], kind: Any, prefix: str) -> Iterator[tuple[str, str]]:
    known = {name: field for field in kind.fields for name in (field.name, field.json_name)}
    for name, value in content.items():
        field = known.get(name)
        if field is None:
            names = ", ".join(each.name for each in kind.fields) or "no field"
            yield f"{prefix}{name[:_LONGEST_NAME]}", f"is unknown: this takes {names}"
        elif field.message_type is not None and isinstance(value, Mapping):
            yield from _unknown(value, field.message_type, f"{prefix}{field.name}.")
