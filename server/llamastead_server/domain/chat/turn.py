"""A chat turn that runs: its answers, one after another, and their end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from llamastead_server.domain.chat.answer import (
    Answer,
    AnswerEvent,
    CallDelta,
    ChoiceFinished,
    TextDelta,
    TurnFinished,
)
from llamastead_server.domain.chat.prompt import Trimmed
from llamastead_server.domain.chat.request import ChatRequest, Parameters
from llamastead_server.domain.chat.sessions import SessionTurn
from llamastead_server.domain.chat.tools import ToolOffer
from llamastead_server.domain.deadline import Deadline
from llamastead_server.domain.models.engine_stream import next_event, started
from llamastead_server.domain.models.generation import GenerationEvent, Message, Usage
from llamastead_server.domain.ports import Engine
from llamastead_server.domain.retrieval.sources import Source


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The engine admitted the prompt: nothing that a request can do wrong is left.

    Attributes:
        session_id: The turn's session; None when stateless.
        model: The model's name as the request or the project has it.
        sources: Passages the model was given, best first.
        trimmed: What was left out of the prompt to make it fit.
    """

    session_id: str | None
    model: str
    sources: Sequence[Source]
    trimmed: Trimmed


@dataclass(frozen=True, slots=True)
class Choices:
    """The answers to one prompt: what each is read from."""

    engine: Engine
    request: ChatRequest
    parameters: Parameters
    messages: Sequence[Message]
    offer: ToolOffer

    def answer(self, choice: int) -> Answer:
        """An answer nothing was read into yet."""
        return Answer(self.offer, native=self.engine.native_tool_calls and not self.offer.in_prompt, choice=choice)

    async def events(self, choice: int) -> AsyncGenerator[GenerationEvent, None]:
        """What the engine says to the prompt, which it has admitted once more."""
        wanted = self.request.generation(self.messages, self.parameters, self.offer, choice=choice)
        async with aclosing(self.engine.generate(wanted)) as events:
            await started(events)
            async for event in events:
                yield event


class ChatTurn:
    """A running turn. Iterating gives each answer's `TextDelta`s and `CallDelta`s, then its end.

    The answers come one after another: each finds the prompt in the engine's cache, and a turn never holds more than
    one of the engine's slots, for which turns that need several could wait for each other. All but the last end with
    `ChoiceFinished`, the last with `TurnFinished`. The first is the one that the session remembers.

    Attributes:
        started: What is known before the first token.
    """

    def __init__(
        self,
        started: TurnStarted,
        first: AsyncGenerator[GenerationEvent, None],
        choices: Choices,
        session: SessionTurn,
        new: Sequence[Message],
        deadline: Deadline,
    ) -> None:
        self.started = started
        self._events = first
        self._choices = choices
        self._session = session
        self._new = new
        self._deadline = deadline

    async def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        last = self._choices.request.n - 1
        first = answer = self._choices.answer(0)
        spent: Usage | None = None
        for choice in range(last + 1):
            if choice:
                # The one before still holds its slot.
                await self._events.aclose()
                answer, self._events = self._choices.answer(choice), self._choices.events(choice)
            end: TurnFinished | None = None
            while end is None:
                for found in answer.read(await next_event(self._events, self._deadline)):
                    if isinstance(found, TurnFinished):
                        end = found
                    else:
                        yield found
            spent = end.usage if spent is None else _added(spent, end.usage)
            if choice < last:
                yield ChoiceFinished(end.reason, choice)
            else:
                # Who has seen the end of an answer finds it in the history.
                await self._session.commit([*self._new, first.message])
                yield TurnFinished(end.reason, spent, choice)

    async def close(self) -> None:
        """Frees the engine."""
        await self._events.aclose()

    async def whole(self) -> tuple[Sequence[TextDelta | CallDelta | ChoiceFinished], TurnFinished]:
        """Waits for the end: everything the answers are made of, and how the last one ended."""
        parts: list[TextDelta | CallDelta | ChoiceFinished] = []
        async for event in self:
            if isinstance(event, TurnFinished):
                return parts, event
            parts.append(event)
        raise AssertionError("a turn ends with TurnFinished")


def _added(first: Usage, more: Usage) -> Usage:
    """The cost of one prompt's answers together."""
    return Usage(first.prompt_tokens, first.completion_tokens + more.completion_tokens, first.cached_tokens)
