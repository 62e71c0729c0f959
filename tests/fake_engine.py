"""The only fake of the tests: an engine with a script, for what needs exact timing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamastead_server.domain.errors import ContextLengthExceeded, EngineFailed
from llamastead_server.domain.models.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Message,
    ModelCard,
    Started,
    TokenCount,
    TokenLogprob,
    Usage,
)


@dataclass
class FakeEngine:
    """Implements `domain.ports.Engine`: one word is one token, and the answer is `pieces`.

    Attributes:
        pieces: What it answers, one delta each; `bytes` pieces are joined and cut at character ends, as an
            engine with byte-level tokens does.
        delay: Seconds before each piece.
        prefill_delay: Seconds before `Started`.
        fail_at: Index of the piece in whose place `EngineFailed` is raised.
        context_length: Window in tokens; a longer prompt raises `ContextLengthExceeded`.
        requests: What it was asked, in order.
        active: Completions running now.
        closed: Completions that were ended by their reader before `Finished`.
        peak: Most completions that ran at once.
        gate: When set to an event, each completion waits for it before its first piece.
    """

    pieces: Sequence[str | bytes] = ("Hello", ", ", "world", ".")
    delay: float = 0.0
    prefill_delay: float = 0.0
    fail_at: int | None = None
    reason: FinishReason = "stop"
    context_length: int = 2048
    card: ModelCard = field(
        default_factory=lambda: ModelCard(
            "fake", "fake.gguf", "gguf", "llamacpp", 0, context_length=2048, loaded=True, state="ready"
        )
    )
    requests: list[GenerationRequest] = field(default_factory=list)
    active: int = 0
    closed: int = 0
    peak: int = 0
    gate: asyncio.Event | None = None
    native_tool_calls: bool = False

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationEvent]:
        self.requests.append(request)
        self.active += 1
        self.peak = max(self.peak, self.active)
        finished = False
        try:
            prompt_tokens = _words(request.prompt or "") + sum(_words(m.content) + 1 for m in request.messages)
            if prompt_tokens >= self.context_length:
                finished = True
                raise ContextLengthExceeded(prompt_tokens, self.context_length)
            await asyncio.sleep(self.prefill_delay)
            yield Started()
            if self.gate is not None:
                await self.gate.wait()
            pending = b""
            limit = len(self.pieces) if request.max_tokens is None else min(request.max_tokens, len(self.pieces))
            for index, piece in enumerate(self.pieces[:limit]):
                await asyncio.sleep(self.delay)
                if index == self.fail_at:
                    finished = True
                    raise EngineFailed("The engine died while it answered.")
                pending += piece.encode() if isinstance(piece, str) else piece
                text, pending = _whole_characters(pending)
                if text:
                    yield Delta(text, _logprobs(text) if request.top_logprobs is not None else ())
            finished = True
            reason: FinishReason = "length" if limit < len(self.pieces) else self.reason
            yield Finished(reason, Usage(prompt_tokens, limit))
        finally:
            self.active -= 1
            self.closed += not finished

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> TokenCount:
        sizes = [_words(message.content) + 1 for message in messages]
        return TokenCount(sum(sizes) + _words(str(tools or "")), sizes)


def _words(text: str) -> int:
    return len(text.split())


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    for end in range(len(data), max(len(data) - 4, -1), -1):
        try:
            return data[:end].decode(), data[end:]
        except UnicodeDecodeError:
            continue
    return "", data


def _logprobs(text: str) -> tuple[TokenLogprob, ...]:
    return (TokenLogprob(text, -0.5, text.encode(), (TokenLogprob(text, -0.5, text.encode()),)),)
