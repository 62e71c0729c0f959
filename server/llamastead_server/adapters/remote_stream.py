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
        self._calls: dict[int, dict[str, str]] = {}

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
            if error := chunk.get("error"):
                raise BadStream(str(error.get("message", error) if isinstance(error, dict) else error))
            if usage := chunk.get("usage"):
                details = usage.get("prompt_tokens_details") or {}
                cached = int(details.get("cached_tokens") or 0)
                self.usage = Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]), cached)
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadStream("it sent what is no chat completion") from None

    def calls(self) -> Iterator[ToolCalled]:
        """The whole calls, in order."""
        for _, parts in sorted(self._calls.items()):
            call_id = parts["id"] or f"call_{uuid4().hex[:24]}"
            yield ToolCalled(ToolCall(call_id, parts["name"], parts["arguments"] or "{}"))

    def _choice(self, choice: Any) -> Iterator[GenerationEvent]:
        delta = choice.get("delta") or {}
        for part in delta.get("tool_calls") or ():
            index = int(part.get("index") or 0)
            call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
            if len(self._calls) > _MOST_CALLS:
                raise BadStream("it called more functions than are read")
            function = part.get("function") or {}
            call["id"] = call["id"] or str(part.get("id") or "")
            call["name"] = call["name"] or str(function.get("name") or "")
            call["arguments"] += str(function.get("arguments") or "")
        logprobs = tuple(_logprob(entry) for entry in (choice.get("logprobs") or {}).get("content") or ())
        text = delta.get("content")
        if text or logprobs:
            self._texts.append(str(text or ""))
            yield Delta(self._texts[-1], logprobs)
        if reason := choice.get("finish_reason"):
            self.reason = "length" if reason == "length" else "tool_calls" if reason == "tool_calls" else "stop"


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


def _logprob(entry: Any) -> TokenLogprob:
    token = str(entry.get("token") or "")
    known = entry.get("bytes")
    content = token.encode(errors="replace") if known is None else bytes(known)
    top = tuple(_logprob(other) for other in entry.get("top_logprobs") or ())
    return TokenLogprob(token, float(entry.get("logprob") or 0.0), content, top)
