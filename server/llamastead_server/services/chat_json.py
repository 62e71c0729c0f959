"""Answers in OpenAI's shapes, as JSON data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from llamastead_server.domain.chat.answer import CallDelta, ChoiceFinished, TextDelta, TurnFinished
from llamastead_server.domain.models.generation import FinishReason, Message, TokenLogprob, ToolCall, Usage
from llamastead_server.domain.retrieval.sources import Source


@dataclass(frozen=True, slots=True)
class CompletionHead:
    """What all parts of one completion share."""

    id: str
    created: int
    model: str

    @classmethod
    def of(cls, model: str) -> CompletionHead:
        """A new completion's head."""
        return cls(f"chatcmpl-{uuid4().hex}", int(time.time()), model)

    def completion(
        self,
        parts: Sequence[TextDelta | CallDelta | ChoiceFinished],
        end: TurnFinished,
        *,
        logprobs: bool,
        sources: Sequence[Source] | None,
    ) -> dict[str, Any]:
        """All answers, whole; `sources` is left out when None."""
        ends: list[ChoiceFinished | TurnFinished] = [part for part in parts if isinstance(part, ChoiceFinished)]
        ends.append(end)
        choices = [_choice_json(one, [part for part in parts if part.choice == one.choice], logprobs) for one in ends]
        shown = {} if sources is None else {"sources": [source_json(source) for source in sources]}
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_json(end.usage), **shown}

    def first(self, choice: int) -> dict[str, Any]:
        """The chunk of an answer that says who speaks."""
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def text(self, delta: TextDelta, *, logprobs: bool) -> dict[str, Any]:
        """A chunk of text."""
        shown = logprobs_json(delta.logprobs) if logprobs else None
        return self._chunk(delta.choice, {"content": delta.text}, logprobs=shown)

    def call(self, delta: CallDelta) -> Sequence[dict[str, Any]]:
        """The chunks of a function call: what is called, then its arguments."""
        head = {"id": delta.call.id, "type": "function", "function": {"name": delta.call.name, "arguments": ""}}
        arguments = {"function": {"arguments": delta.call.arguments}}
        return [
            self._chunk(delta.choice, {"tool_calls": [{"index": delta.index, **part}]}) for part in (head, arguments)
        ]

    def last(self, end: ChoiceFinished | TurnFinished) -> dict[str, Any]:
        """The chunk that says why an answer ended."""
        return self._chunk(end.choice, {}, end.reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk that follows the last one when usage is asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_json(usage)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(
        self,
        choice: int,
        delta: Mapping[str, Any],
        reason: FinishReason | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        shown = {"index": choice, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return {**self._head("chat.completion.chunk"), "choices": [shown]}


def message_json(message: Message) -> dict[str, Any]:
    """A message of a conversation."""
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shown |= {"content": message.content or None, "tool_calls": [call_json(call) for call in message.tool_calls]}
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def usage_json(usage: Usage) -> dict[str, Any]:
    """Tokens a completion cost."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def logprobs_json(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log probabilities of an answer's tokens; the token that ends it has no text and is none of them."""
    return {
        "content": [
            {**_token(entry), "top_logprobs": [_token(top) for top in entry.top]}
            for entry in entries
            if entry.token_bytes
        ]
    }


def source_json(source: Source) -> dict[str, Any]:
    """A passage the model was given."""
    return {
        "content": source.chunk.text,
        "source": source.chunk.filename,
        "score": source.score,
        "metadata": dict(source.metadata),
        "chunk_id": source.chunk.id,
        "document_id": source.chunk.file_hash,
    }


def call_json(call: ToolCall) -> dict[str, Any]:
    """A function call of an answer."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _choice_json(
    end: ChoiceFinished | TurnFinished, parts: Sequence[TextDelta | CallDelta | ChoiceFinished], logprobs: bool
) -> dict[str, Any]:
    texts = [part for part in parts if isinstance(part, TextDelta)]
    calls = tuple(part.call for part in parts if isinstance(part, CallDelta))
    return {
        "index": end.choice,
        "message": message_json(Message("assistant", "".join(part.text for part in texts), calls)),
        "finish_reason": end.reason,
        "logprobs": logprobs_json([entry for part in texts for entry in part.logprobs]) if logprobs else None,
    }


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.token_bytes)}
