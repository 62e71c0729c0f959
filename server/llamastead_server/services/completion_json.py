"""Continued text in the shape of OpenAI's older endpoint, as JSON data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from llamastead_server.domain.chat.completion import CompletionEvent
from llamastead_server.domain.models.generation import Delta, Finished, TokenLogprob, Usage
from llamastead_server.services.chat_json import usage_json


@dataclass(frozen=True, slots=True)
class TextCompletionHead:
    """What all parts of one completion share."""

    id: str
    created: int
    model: str

    @classmethod
    def of(cls, model: str) -> TextCompletionHead:
        """A new completion's head."""
        return cls(f"cmpl-{uuid4().hex}", int(time.time()), model)

    def part(self, event: CompletionEvent, *, offset: int, logprobs: bool) -> dict[str, Any]:
        """A part of a stream; `offset` is where its text begins in the answer."""
        inner = event.event
        if isinstance(inner, Finished):
            return self._body([_choice(event.index, "", inner.reason, None)])
        shown = _logprobs(inner.logprobs, offset) if logprobs else None
        return self._body([_choice(event.index, inner.text, None, shown)])

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The part that follows the last one when usage is asked for."""
        return {**self._body([]), "usage": usage_json(usage)}

    def whole(self, events: Sequence[CompletionEvent], *, logprobs: bool) -> dict[str, Any]:
        """All answers at once."""
        choices = []
        for end in (event for event in events if isinstance(event.event, Finished)):
            deltas = [event.event for event in events if event.index == end.index and isinstance(event.event, Delta)]
            entries = [entry for delta in deltas for entry in delta.logprobs]
            reason = end.event.reason if isinstance(end.event, Finished) else None
            shown = _logprobs(entries, 0) if logprobs else None
            choices.append(_choice(end.index, "".join(delta.text for delta in deltas), reason, shown))
        return {**self._body(choices), "usage": usage_json(total_usage(events))}

    def _body(self, choices: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }


def total_usage(events: Sequence[CompletionEvent]) -> Usage:
    """What all answers cost together; a prompt with several is counted once."""
    ends = [(event.event.usage, event.again) for event in events if isinstance(event.event, Finished)]
    return Usage(
        sum(usage.prompt_tokens for usage, again in ends if not again),
        sum(usage.completion_tokens for usage, _ in ends),
        sum(usage.cached_tokens for usage, again in ends if not again),
    )


def _choice(index: int, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    shown = [entry for entry in entries if entry.token_bytes]
    offsets = []
    for entry in shown:
        offsets.append(offset)
        offset += len(entry.token)
    return {
        "tokens": [entry.token for entry in shown],
        "token_logprobs": [entry.logprob for entry in shown],
        "top_logprobs": [{top.token: top.logprob for top in entry.top} for entry in shown],
        "text_offset": offsets,
    }
