"""Conversations and raw prompts as token ids, with control tokens only where the chat template puts them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from llamastead_server.domain.models.generation import Message
from llamastead_server.workers.chat_template import ChatTemplate, ControlTokens, TemplateRefused
from llamastead_server.workers.model import Refused


class PromptEncoder(ABC):
    """What all engines do alike to make a prompt of a request; how plain text becomes tokens is each one's own.

    Args:
        template: Renders conversations.
        control: The tokens that no user's text may become.
    """

    def __init__(self, template: ChatTemplate, control: ControlTokens) -> None:
        self._template = template
        self._control = control

    async def encode_conversation(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), thinking: bool | None = None
    ) -> list[int]:
        """Renders and encodes a conversation, and the tools in OpenAI's form that the model may call.

        Raises:
            Refused: The model's template does not take it.
        """
        try:
            pieces = self._template.pieces(messages, tools, thinking)
        except TemplateRefused as refusal:
            raise Refused(str(refusal)) from None
        return await self._encode(pieces)

    async def encode_text(self, text: str) -> list[int]:
        """Encodes a raw prompt; control tokens in it stay text."""
        hidden: list[str] = []
        return await self._encode(self._control.pieces(self._control.protect(text, hidden), hidden))

    async def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(await self._encode_run(text))

    async def _encode(self, pieces: Sequence[str | int]) -> list[int]:
        begin = await self._beginning()
        tokens: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                tokens.append(piece)
            else:
                tokens.extend(await self._encode_run(piece))
        return tokens if tokens[: len(begin)] == begin else begin + tokens

    @abstractmethod
    async def _beginning(self) -> list[int]:
        """What every prompt begins with."""

    @abstractmethod
    async def _encode_run(self, text: str) -> list[int]:
        """Encodes plain text."""
