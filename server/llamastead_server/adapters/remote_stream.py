"""The Server-Sent Events of an OpenAI-compatible chat completion, as generation events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

from llamastead_server.domain.models.generation import (
    Delta,
    FinishReason,
    GenerationEvent,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    Usage,
)

_LONGEST_LINE = 4 << 20
_MOST_CALLS = 128
_MOST_CHARACTERS = 16 << 20
_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not know, as in OpenAI's API."""


class BadStream(Exception):
    """The other server sent an error, or what is no such stream; the message says what."""


class RemoteStream:
    """Reads one completion.

    Attributes:
        reason: Why it ended, once it has said so.
        usage: Its cost, if it told.
        text: What it said.
        ended: Whether nothing more follows.
    """

    def __init__(self) -> None:
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.ended = False
        self._texts: list[str] = []
        self._calls: list[dict[str, str]] = []
        self._open_calls: dict[int, dict[str, str]] = {}
        self._characters = 0

    @property
    def text(self) -> str:
        """What it said so far."""
        return "".join(self._texts)

    def read(self, data: str) -> Iterator[GenerationEvent]:
        """What one event adds.

        Raises:
            BadStream: It is an error, or no chunk.
        """
        if data == "[DONE]":
            self.ended = True
            return
        try:
            chunk = json.loads(data)
            if "\\ud" in data.lower():
                # Half a character, which no text can hold, is shown as `?`.
                chunk = json.loads(json.dumps(chunk, ensure_ascii=False).encode(errors="replace"))
            if error := chunk.get("error"):
                raise BadStream(str(error.get("message", error) if isinstance(error, dict) else error))
            if usage := chunk.get("usage"):
                details = usage.get("prompt_tokens_details") or {}
                cached = details.get("cached_tokens") or 0
                self.usage = Usage(_count(usage["prompt_tokens"]), _count(usage["completion_tokens"]), _count(cached))
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise BadStream("it sent what is no chat completion") from None

    def calls(self) -> Iterator[ToolCalled]:
        """The whole calls, in order."""
        for parts in self._calls:
            call_id = parts["id"] or f"call_{uuid4().hex[:24]}"
            yield ToolCalled(ToolCall(call_id, parts["name"], parts["arguments"] or "{}"))

    def _choice(self, choice: Any) -> Iterator[GenerationEvent]:
        delta = choice.get("delta") or {}
        for part in delta.get("tool_calls") or ():
            function = part.get("function") or {}
            call = self._call(part.get("index"), str(part.get("id") or ""), str(function.get("name") or ""))
            arguments = str(function.get("arguments") or "")
            self._measure(arguments)
            call["arguments"] += arguments
        logprobs = tuple(_logprob(entry) for entry in (choice.get("logprobs") or {}).get("content") or ())
        # That the model refuses is all that it says then.
        text = str(delta.get("content") or delta.get("refusal") or "")
        if text or logprobs:
            self._measure(text)
            self._texts.append(text)
            yield Delta(self._texts[-1], logprobs)
        if reason := choice.get("finish_reason"):
            self.reason = "length" if reason == "length" else "tool_calls" if reason == "tool_calls" else "stop"

    def _call(self, index: Any, call_id: str, name: str) -> dict[str, str]:
        """The call that a part belongs to. Some servers number all calls 0, or none: another id or name begins one."""
        place = int(index or 0)
        call = self._open_calls.get(place)
        if call is None or (call_id and call["id"] not in ("", call_id)) or (index is None and name and call["name"]):
            if len(self._calls) == _MOST_CALLS:
                raise BadStream("it called more functions than are read")
            call = self._open_calls[place] = {"id": "", "name": "", "arguments": ""}
            self._calls.append(call)
        call["id"] = call["id"] or call_id
        call["name"] = call["name"] or name
        return call

    def _measure(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > _MOST_CHARACTERS:
            raise BadStream("it said more than is read")


async def sse_data(parts: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The `data` of each event.

    Raises:
        BadStream: A line is longer than any real one.
    """
    pending = b""
    async for part in parts:
        *lines, pending = (pending + part).split(b"\n")
        if len(pending) > _LONGEST_LINE:
            raise BadStream("it sent a line that is too long")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode(errors="replace")
    if pending.startswith(b"data:"):
        yield pending[5:].strip().decode(errors="replace")


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count < 1 << 31:
        raise ValueError(f"{count} tokens")
    return count


def _logprob(entry: Any) -> TokenLogprob:
    token = str(entry.get("token") or "")
    known = entry.get("bytes")
    content = token.encode(errors="replace") if known is None else bytes(known)
    top = tuple(_logprob(other) for other in entry.get("top_logprobs") or ())
    logprob = min(0.0, max(_LEAST_LOGPROB, float(entry.get("logprob") or 0.0)))
    return TokenLogprob(token, logprob, content, top)
