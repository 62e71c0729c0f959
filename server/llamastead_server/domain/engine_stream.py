"""An engine's events, each awaited under the deadline of the request they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llamastead_server.domain.errors import EngineFailed, RequestTimeout
from llamastead_server.domain.generation import GenerationEvent, Started


class Deadline:
    """A moment by which a request must be answered, held around each wait and never across a `yield`.

    Args:
        seconds: Time from now.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._when = asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Raises `RequestTimeout` out of the block when the moment comes."""
        timeout = asyncio.timeout_at(self._when)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise RequestTimeout(
                f"The answer was not complete after {self._seconds:g} seconds, the most one request may take."
            ) from None


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
