"""The window a turn may use: the engine's, or the smaller one that the request asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastead_server.domain.chat.prompt import Prompt
from llamastead_server.domain.chat.request import Parameters
from llamastead_server.domain.errors import ContextLengthExceeded, ValidationFailed
from llamastead_server.domain.models.generation import Message, TokenCount
from llamastead_server.domain.ports import Engine


@dataclass(frozen=True, slots=True)
class ChatWindow:
    """Measures prompts against the window; a `prompt.TokenCounter`."""

    engine: Engine
    context_length: int

    @classmethod
    def of(cls, engine: Engine, wanted: int | None) -> ChatWindow:
        """The engine's window, or as much of it as `wanted`.

        Raises:
            ValidationFailed: The engine's is smaller.
        """
        own = engine.context_length
        if wanted is not None and wanted > own:
            reason = f"the model was loaded with a window of {own} tokens; LLAMASTEAD_CONTEXT_LENGTH sets it"
            raise ValidationFailed(f"Invalid request: n_ctx: {reason}.", details={"n_ctx": reason})
        return cls(engine, own if wanted is None else wanted)

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> TokenCount:
        """The size of a conversation."""
        return await self.engine.count_tokens(messages, tools)

    async def limit(self, prompt: Prompt, parameters: Parameters) -> Parameters:
        """Holds prompt and answer to a window that is smaller than the engine's: gives the parameters for that.

        Raises:
            ContextLengthExceeded: The prompt fills it.
        """
        if self.context_length == self.engine.context_length:
            return parameters
        size = (await self.engine.count_tokens(prompt.messages, prompt.tools)).total
        left = self.context_length - size
        if left < 1:
            raise ContextLengthExceeded(size, self.context_length)
        limit = left if parameters.token_limit is None else min(left, parameters.token_limit)
        return parameters.model_copy(update={"max_completion_tokens": limit})
