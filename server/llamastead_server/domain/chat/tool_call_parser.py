"""Finds the calls in what a model writes, as it writes it.

Two forms are known: `<tool_call>{…}</tool_call>` anywhere (Hermes, Qwen), and bare objects
`{"name": …, "parameters": …}` at the beginning of the answer (Llama 3.x), several of them apart by white space, `;` or
`,`. What might become a call is held back until it is one, or is known not to be. However the text is cut into pieces,
the same calls and the same text come out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Literal
from uuid import uuid4

from llamastead_server.domain.models.generation import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FIRST_KEYS = frozenset({"name", "type", "id", "function", "parameters", "arguments"})
_FIRST_KEY = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"')
_SPECIAL = re.compile(r'["\\{}]')
_BETWEEN = re.compile(rf"\s*(?:{_CLOSE})?[\s;,]*")
_AFTER = re.compile(rf"\s*(?:{_CLOSE}\s*)?")

Mode = Literal["start", "after", "text"]


class ToolCallParser:
    """Parts one answer into text and calls.

    Args:
        names: Functions that may be called; what looks like a call to another stays text.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._mode: Mode = "start"
        self._held = ""
        self._scan: _ObjectScan | None = None

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """Takes more of the answer and gives what it completes: text, or a call."""
        self._held += text
        while self._held:
            found = self._text() if self._mode == "text" else self._call()
            if found is None:
                return
            if found:
                yield found

    def finish(self, *, cut: bool) -> Iterator[str]:
        """Gives the text that was held back in vain.

        Args:
            cut: Whether the answer ended for lack of room: then half a call is no text, and is lost.
        """
        held, self._held = self._held, ""
        half = (self._mode != "text" and held.strip() != "") or held.startswith(_OPEN[:5])
        if self._mode == "after":
            held = held[_match(_AFTER, held) :]
        if held and not (cut and half):
            yield held

    def _text(self) -> str | None:
        """Text up to where a call may begin."""
        start = self._held.find(_OPEN)
        if start == 0:
            self._mode = "start"
            return ""
        if start < 0:
            start = len(self._held) - _overlap(self._held, _OPEN)
        text, self._held = self._held[:start], self._held[start:]
        return text or None

    def _call(self) -> ToolCall | str | None:
        """A call where one may stand: None while that is open, and no text when there is none."""
        begin = _match(re.compile(r"\s*") if self._mode == "start" else _BETWEEN, self._held)
        rest = self._held[begin:]
        if _is_begun(rest, _OPEN) or (self._mode == "after" and _is_begun(self._held.lstrip(), _CLOSE)):
            return None
        tag = len(_OPEN) if rest.startswith(_OPEN) else 0
        inner = rest[tag:].lstrip()
        if tag and not inner:
            return None
        if not inner.startswith("{"):
            return self._no_call(begin, tag)
        key = _FIRST_KEY.match(inner)
        if (key and key.group(1) not in _FIRST_KEYS) or (not key and inner[1:].lstrip()[:1] not in ("", '"')):
            return self._no_call(begin, tag)
        if self._scan is None:
            self._scan = _ObjectScan()
        end = self._scan.end(inner)
        if end is None:
            return None
        self._scan = None
        call = _read(inner[:end], self._names)
        if call is None:
            return self._no_call(begin, tag)
        self._held = inner[end:]
        self._mode = "after"
        return call

    def _no_call(self, begin: int, tag: int) -> str:
        """What stands here is text: gives the tag it begins with, which would be looked at again, or nothing."""
        if self._mode == "after":
            begin = max(_match(_AFTER, self._held), begin if tag else 0)
        elif not tag:
            begin = 0
        self._mode = "text"
        self._scan = None
        text = self._held[begin : begin + tag]
        self._held = self._held[begin + tag :]
        return text


class _ObjectScan:
    """Finds the end of a JSON object, going on where it stopped."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._in_string = False

    def end(self, text: str) -> int | None:
        """Where the object at the start of `text` ends; `text` only grows from call to call."""
        while (match := _SPECIAL.search(text, self._at)) is not None:
            character, after = match.group(), match.end()
            if character == "\\" and self._in_string:
                if after == len(text):
                    return None
                after += 1
            elif character == '"':
                self._in_string = not self._in_string
            elif not self._in_string and character in "{}":
                self._depth += 1 if character == "{" else -1
                if self._depth == 0:
                    return after
            self._at = after
        self._at = len(text)
        return None


def _read(text: str, names: Collection[str]) -> ToolCall | None:
    """The call that an object is, or None."""
    try:
        found = json.loads(text, parse_constant=_no_json)
        function = found.get("function")
        if isinstance(function, dict):
            found = function
        name = found.get("name", function)
        arguments: Any = found.get("arguments", found.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments, parse_constant=_no_json)
        if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
            return None
        written = json.dumps(arguments, ensure_ascii=False)
        # Half a surrogate pair, which an escape can spell, is no text that can be sent.
        written.encode()
    except (ValueError, RecursionError):
        return None
    return ToolCall(f"call_{uuid4().hex[:24]}", name, written)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _match(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0


def _is_begun(text: str, whole: str) -> bool:
    """Whether `text` may still become `whole`."""
    return len(text) < len(whole) and whole.startswith(text)


def _overlap(text: str, whole: str) -> int:
    """Length of the end of `text` that `whole` begins with."""
    return next((size for size in range(min(len(text), len(whole) - 1), 0, -1) if whole.startswith(text[-size:])), 0)
