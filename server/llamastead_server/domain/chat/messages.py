"""The messages of a chat request, from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from llamastead_server.domain.chat.tools import parse_calls
from llamastead_server.domain.models.generation import Message, Role

_ROLES: Mapping[Any, Role] = {**{role: role for role in get_args(Role)}, "developer": "system"}

MOST_MESSAGES = 10_000
_MOST_REASONS = 100


def parse_messages(value: Any) -> tuple[list[Message], dict[str, str]]:
    """Reads `messages`: (the messages, what is wrong with them by its place)."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return [], {"messages": "give a list of at least one message"}
    if len(value) > MOST_MESSAGES:
        return [], {"messages": f"there are {len(value)}; at most {MOST_MESSAGES} are accepted"}
    messages: list[Message] = []
    reasons: dict[str, str] = {}
    for number, entry in enumerate(value):
        try:
            messages.append(_message(entry))
        except ValueError as error:
            reasons[f"messages.{number}"] = str(error)
            if len(reasons) == _MOST_REASONS:
                return [], reasons
    turns = [message for message in messages if message.role != "system"]
    if not reasons and (not turns or turns[-1].role == "assistant"):
        reasons["messages"] = "the last message must come from the user or a tool: there is nothing to answer"
    return messages, reasons


def unanswered(messages: Sequence[Message]) -> str | None:
    """The `tool_call_id` of the first `tool` message that answers no call before it, or None."""
    calls: set[str] = set()
    for message in messages:
        calls.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in calls:
            return message.tool_call_id
    return None


def _message(entry: Any) -> Message:
    if not isinstance(entry, Mapping):
        raise ValueError("must be an object with role and content")
    role = entry.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        given = "role is missing: give" if role is None else f"role {role!r} is not"
        raise ValueError(f"{given} one of {', '.join(_ROLES)}")
    calls = parse_calls(entry.get("tool_calls") or ())
    if calls and role != "assistant":
        raise ValueError("only an assistant message has tool_calls")
    content = entry.get("content")
    text = "" if content is None and calls else _text(content)
    call_id = entry.get("tool_call_id")
    if role != "tool":
        return Message(_ROLES[role], text, calls)
    if not isinstance(call_id, str) or not call_id:
        raise ValueError("a tool message needs tool_call_id, the id of the call it answers")
    return Message("tool", text, (), call_id)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not content:
        raise ValueError("content must be a string or a list of text parts")
    parts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise ValueError(f"content parts of type {kind!r} are not supported: this server's models read text only")
        if not isinstance(part.get("text"), str):
            raise ValueError("a text part needs `text`, a string")
        parts.append(part["text"])
    return "".join(parts)
