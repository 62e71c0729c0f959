"""What an engine's events mean to the one who asked: text, calls of functions, and the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamastead_server.domain.chat.tool_call_parser import ToolCallParser
from llamastead_server.domain.chat.tools import ToolOffer
from llamastead_server.domain.models.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerationEvent,
    Message,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    Usage,
)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of an answer, and that answer's place among those that were asked for."""

    text: str
    logprobs: Sequence[TokenLogprob] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A whole call of a function, its place among the answer's calls, and the answer's place."""

    index: int
    call: ToolCall
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """An answer ended, and another one follows."""

    reason: FinishReason
    choice: int


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The last answer ended, and the first one is in the session's history.

    Attributes:
        reason: Why the last answer ended.
        usage: What all answers cost: the prompt is counted once.
        choice: The last answer's place.
    """

    reason: FinishReason
    usage: Usage
    choice: int = 0


AnswerEvent = TextDelta | CallDelta | ChoiceFinished | TurnFinished


class Answer:
    """Reads one answer, and remembers it.

    Args:
        offer: The functions that may be called.
        native: Whether the engine gives calls as such; otherwise they are found in the text.
        choice: The answer's place among those that were asked for.
    """

    def __init__(self, offer: ToolOffer, *, native: bool, choice: int = 0) -> None:
        self._choice = choice
        self._parallel = offer.parallel
        self._parser = ToolCallParser(offer.names) if offer.tools and not native else None
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def message(self) -> Message:
        """The answer so far."""
        return Message("assistant", "".join(self._texts), tuple(self._calls))

    def read(self, event: GenerationEvent) -> Iterator[TextDelta | CallDelta | TurnFinished]:
        """What an event adds; the end is told as if no other answer followed."""
        if isinstance(event, ToolCalled):
            yield from self._called(event.call)
        elif isinstance(event, Delta):
            if self._parser is None:
                yield self._said(event.text, event.logprobs)
                return
            self._logprobs.extend(event.logprobs)
            for found in self._parser.feed(event.text):
                yield from self._called(found) if isinstance(found, ToolCall) else [self._said(found, self._held())]
        elif isinstance(event, Finished):
            if self._parser is not None:
                for text in self._parser.finish(cut=event.reason == "length"):
                    yield self._said(text, self._held())
            called = self._calls and event.reason != "length"
            yield TurnFinished("tool_calls" if called else event.reason, event.usage, self._choice)

    def _said(self, text: str, logprobs: Sequence[TokenLogprob]) -> TextDelta:
        self._texts.append(text)
        return TextDelta(text, logprobs, self._choice)

    def _called(self, call: ToolCall) -> Iterator[CallDelta]:
        self._logprobs.clear()
        if self._parallel or not self._calls:
            self._calls.append(call)
            yield CallDelta(len(self._calls) - 1, call, self._choice)

    def _held(self) -> Sequence[TokenLogprob]:
        held, self._logprobs = tuple(self._logprobs), []
        return held
