"""An engine's events, each awaited under the deadline of the request they answer."""

from __future__ import annotations

from collections.abc import AsyncIterator

from llamastead_server.domain.deadline import Deadline
from llamastead_server.domain.errors import EngineFailed
from llamastead_server.domain.models.generation import GenerationEvent, Started


async def started(events: AsyncIterator[GenerationEvent]) -> None:
    """Waits until the engine has admitted the prompt."""
    event = await anext(events, None)
    if not isinstance(event, Started):
        raise EngineFailed("The engine ended before it started to answer.")


async def next_event(events: AsyncIterator[GenerationEvent], deadline: Deadline) -> GenerationEvent:
    """The next event of an answer that has not ended."""
    async with deadline.held():
        event = await anext(events, None)
    if event is None:
        raise EngineFailed("The engine ended before the answer was complete.")
    return event
