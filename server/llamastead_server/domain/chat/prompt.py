"""Assembles what the model sees, and fits it into the model's window.

The order is stable from turn to turn (system, history, the user's turn), so that the engine's prompt cache hits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Protocol

from llamastead_server.domain.chat import tool_prompt
from llamastead_server.domain.chat.tools import NO_TOOLS, ToolOffer
from llamastead_server.domain.config.runtime import PromptMessage
from llamastead_server.domain.errors import ContextLengthExceeded, ValidationFailed
from llamastead_server.domain.models.generation import Message, TokenCount
from llamastead_server.domain.retrieval.sources import Source, context, document

_ANSWER_TOKENS = 256
_TEMPLATE_TOKENS = 64
_TEMPLATE_TOKENS_PER_MESSAGE = 16
_LONGEST_TOKEN_BYTES = 256
"""No vocabulary has a longer token: the longest are runs of 128 spaces or so."""
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*(?:\|([^{}]*))?\}\}")


class TokenCounter(Protocol):
    """The part of an engine that measures prompts."""

    @property
    def context_length(self) -> int:
        """Tokens in the window."""
        ...

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> TokenCount:
        """The size of a conversation, and of the tools beside it, as the model's template renders them."""
        ...


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What was left out of a prompt to make it fit: whole turns of history, and passages."""

    turns: int = 0
    chunks: int = 0

    def __str__(self) -> str:
        parts = [f"turns={self.turns}"] * bool(self.turns) + [f"chunks={self.chunks}"] * bool(self.chunks)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model sees, in parts.

    Attributes:
        system: Text of the system message, without the passages.
        examples: Configured messages of a user and an assistant, which precede the history.
        sources: Passages, best first.
        history: Earlier turns, oldest first; each begins with a user's message.
        current: The messages to answer; they are never cut.
        tools: Functions in OpenAI's form for the model's template; they are never cut.
        trimmed: What was left out.
    """

    system: str
    examples: Sequence[Message]
    sources: Sequence[Source]
    history: Sequence[Sequence[Message]]
    current: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    trimmed: Trimmed = Trimmed()

    @classmethod
    def assemble(
        cls,
        configured: Sequence[Message],
        system: str | None,
        sources: Sequence[Source],
        turns: Sequence[Message],
        offer: ToolOffer = NO_TOOLS,
    ) -> Prompt:
        """Joins the parts; a request's own `system` text replaces all configured messages."""
        own = [Message("system", system)] if system is not None else configured
        texts = [message.content for message in own if message.role == "system"]
        if offer.in_prompt:
            texts.append(tool_prompt.description(offer.tools))
        written = tool_prompt.as_text if offer.in_prompt else list[Message]
        start = _current(turns)
        return cls(
            system="\n\n".join(text for text in texts if text),
            examples=[message for message in own if message.role != "system"],
            sources=sorted(sources, key=lambda source: source.score, reverse=True),
            history=[written(turn) for turn in _split(turns[:start])],
            current=written(turns[start:]),
            tools=() if offer.in_prompt else [tool.plain() for tool in offer.tools],
        )

    @property
    def messages(self) -> Sequence[Message]:
        """The conversation for the engine."""
        text = "\n\n".join(part for part in (self.system, context(self.sources)) if part)
        system = [Message("system", text)] if text else []
        return [*system, *self.examples, *(message for turn in self.history for message in turn), *self.current]

    def without(self, *, turns: int, chunks: int) -> Prompt:
        """Leaves out so many of the oldest turns and of the lowest-scored passages."""
        return replace(
            self,
            history=self.history[turns:],
            sources=self.sources[: len(self.sources) - chunks],
            trimmed=Trimmed(self.trimmed.turns + turns, self.trimmed.chunks + chunks),
        )

    def surely_fits(self, counter: TokenCounter, max_tokens: int | None) -> bool:
        """Whether it fits by its bytes alone: a token takes at least one of them."""
        size = sum(message.size + _TEMPLATE_TOKENS_PER_MESSAGE for message in self.messages)
        # Templates write tools with more white space than this, and with words around them.
        tools = 2 * len(json.dumps(self.tools).encode()) + 1024 if self.tools else 0
        return size + tools + _TEMPLATE_TOKENS <= room(counter.context_length, max_tokens)

    def check_size(self, counter: TokenCounter) -> None:
        """Refuses a turn that no tokenizer could make fit, without the seconds that counting it would take.

        Raises:
            ContextLengthExceeded: Even if each token stood for as many bytes as the longest of any vocabulary.
        """
        least = sum(message.size for message in self.current) // _LONGEST_TOKEN_BYTES
        if least > counter.context_length:
            raise ContextLengthExceeded(least, counter.context_length, at_least=True)

    async def fit(self, counter: TokenCounter, max_tokens: int | None) -> Prompt:
        """Trims passages and old turns until the prompt leaves room for the answer.

        The best passages may take half of the space that the system message and the current turn leave; then the
        newest turns take what they need; what is left goes to more passages. What can't be trimmed stays, even if
        the engine will refuse it.
        """
        limit = room(counter.context_length, max_tokens)
        counted = await counter.count_tokens(self.messages, self.tools)
        if counted.total <= limit:
            return self
        turn_costs, chunk_costs = self._costs(counted)
        spare = limit - (counted.total - sum(turn_costs) - sum(chunk_costs))
        chunks, used = _take(chunk_costs, spare // 2)
        turns, spent = _take(turn_costs[::-1], spare - used)
        more, _ = _take(chunk_costs[chunks:], spare - used - spent)
        kept = self.without(turns=len(self.history) - turns, chunks=len(self.sources) - chunks - more)
        # A passage's cost is its share of the system message's, which may be a little off.
        while (kept.history or kept.sources) and (await counter.count_tokens(kept.messages, kept.tools)).total > limit:
            kept = kept.without(turns=1, chunks=0) if kept.history else kept.without(turns=0, chunks=1)
        return kept

    def _costs(self, counted: TokenCount) -> tuple[Sequence[int], Sequence[int]]:
        after = len(counted.per_message) - len(self.current)
        sizes = iter(counted.per_message[after - sum(len(turn) for turn in self.history) : after])
        turns = [sum(next(sizes) for _ in turn) for turn in self.history]
        if not self.sources:
            return turns, []
        per_character = counted.per_message[0] / len(self.messages[0].content)
        return turns, [ceil(len(document(source)) * per_character) for source in self.sources]


def room(context_length: int, max_tokens: int | None) -> int:
    """Tokens a prompt may take when an answer is to follow: a quarter of the window at most is kept for it."""
    return context_length - min(max_tokens or _ANSWER_TOKENS, context_length // 4)


def fill(messages: Sequence[PromptMessage], variables: Mapping[str, Any]) -> Sequence[Message]:
    """Fills `{{name}}` and `{{name | default}}` in configured messages.

    Raises:
        ValidationFailed: A variable has neither a value nor a default.
    """
    return [Message(message.role, fill_texts(message.content, variables)) for message in messages]


def fill_texts(content: Any, variables: Mapping[str, Any]) -> Any:
    """Fills the same places in every text of plain data.

    Raises:
        ValidationFailed: A variable has neither a value nor a default.
    """
    if isinstance(content, Mapping):
        return {key: fill_texts(value, variables) for key, value in content.items()}
    if isinstance(content, list):
        return [fill_texts(value, variables) for value in content]
    return _VARIABLE.sub(lambda match: _value(match, variables), content) if isinstance(content, str) else content


def _value(match: re.Match[str], variables: Mapping[str, Any]) -> str:
    name, default = match.groups()
    if variables.get(name) is not None:
        given = variables[name]
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if default is None:
        reason = "the project's prompts need a value for it"
        raise ValidationFailed(f"Invalid request: variables.{name}: {reason}.", details={f"variables.{name}": reason})
    text: str = default.strip()
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _current(turns: Sequence[Message]) -> int:
    """Where the messages to answer begin: after the last answer, or at the question that tools were called for."""
    start = max((place for place, message in enumerate(turns) if message.role == "assistant"), default=-1) + 1
    if any(message.role == "tool" for message in turns[start:]):
        return max((place for place, message in enumerate(turns[:start]) if message.role == "user"), default=0)
    return start


def _split(messages: Sequence[Message]) -> Sequence[Sequence[Message]]:
    turns: list[list[Message]] = []
    for message in messages:
        # Several messages of the user in a row belong to one turn.
        if not turns or (message.role == "user" and turns[-1][-1].role != "user"):
            turns.append([])
        turns[-1].append(message)
    return turns


def _take(costs: Sequence[int], budget: int) -> tuple[int, int]:
    used = 0
    for number, cost in enumerate(costs):
        if used + cost > budget:
            return number, used
        used += cost
    return len(costs), used
