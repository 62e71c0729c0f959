"""Measures one generation as its events come."""

from __future__ import annotations

import time

from llamastead_server.domain.models.generation import Delta, Finished, GenerationEvent, Usage
from llamastead_server.domain.operations.meters import Meters


class GenerationMeter:
    """Made when a request is admitted to an engine's queue; `close` it when its generation has ended in any way.

    Args:
        meters: Where measurements go.
        model: The engine's model.
    """

    def __init__(self, meters: Meters, model: str) -> None:
        self._meters = meters
        self._model = model
        self._last = time.monotonic()
        self._any = False
        self._usage: Usage | None = None
        self._reason = "cancelled"

    def event(self, event: GenerationEvent, tokens: int) -> None:
        """Takes an event with the number of tokens behind it."""
        if isinstance(event, Finished):
            self._reason, self._usage = event.reason, event.usage
        elif isinstance(event, Delta):
            now = time.monotonic()
            if self._any:
                self._meters.more_tokens(self._model, tokens, now - self._last)
            else:
                self._meters.first_token(self._model, now - self._last)
            self._last, self._any = now, True

    def failed(self) -> None:
        """Notes that the engine broke off or refused the request."""
        self._reason = "failed"

    def close(self) -> None:
        """Notes the end."""
        self._meters.answered(self._model, self._reason, self._usage)
