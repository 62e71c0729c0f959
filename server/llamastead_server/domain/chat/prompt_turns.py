"""Single prompts: chat turns without a project, with LlamaHome's defaults."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.chat.turn import ChatTurn
from llamastead_server.domain.chat.turns import ChatTurns
from llamastead_server.domain.errors import ValidationFailed
from llamastead_server.domain.models.runtime_settings import RuntimeSettings
from llamastead_server.domain.validation import summary

DEFAULT_ALIAS = "llama3.3"
"""What the default model is called in answers to requests that name none."""


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """A prompt and how to answer it.

    Attributes:
        chat: The same as a chat request.
        timeout: Seconds the answer may take, if fewer than the server allows.
    """

    chat: ChatRequest
    timeout: float | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> PromptRequest:
        """Reads a request from plain data.

        Raises:
            ValidationFailed: The prompt is blank, or a value is out of range.
        """
        fields = dict(body)
        prompt, timeout = fields.pop("prompt", None), fields.pop("timeout", None)
        wrong = {}
        if not isinstance(prompt, str) or not prompt.strip():
            wrong["prompt"] = "must not be blank"
        if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
            wrong["timeout"] = "must be more than 0 seconds"
        if wrong:
            raise ValidationFailed(f"Invalid request: {summary(wrong)}.", details=wrong)
        return cls(ChatRequest.parse({**fields, "messages": [{"role": "user", "content": prompt}]}), timeout)

    @property
    def model_used(self) -> str:
        """The model as the request has it."""
        return self.chat.model or DEFAULT_ALIAS


class PromptTurns:
    """Answers prompts.

    Args:
        turns: What runs them.
        settings: The defaults.
    """

    def __init__(self, turns: ChatTurns, settings: RuntimeSettings) -> None:
        self._turns = turns
        self._settings = settings

    @asynccontextmanager
    async def start(self, request: PromptRequest) -> AsyncIterator[ChatTurn]:
        """Runs a turn while the block runs; see `ChatTurns.start`."""
        chat = request.chat
        if chat.token_limit is None:
            chat = chat.model_copy(update={"max_tokens": self._settings.token_limit(chat.model or None)})
        async with self._turns.start(None, chat, timeout=request.timeout) as turn:
            yield turn
