"""A moment by which work must be over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llamastead_server.domain.errors import RequestTimeout


class Deadline:
    """Held around each wait of a turn, and never across a `yield` of it.

    Args:
        seconds: Time from now.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._when = asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Ends what the block waits for when the time is over.

        Raises:
            RequestTimeout: It is.
        """
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
