"""The wish that the server stops, from a signal or a request."""

from __future__ import annotations

import asyncio


class Shutdown:
    """Is waited for by the server's life, and by streams that would have no end.

    Args:
        grace: Seconds running answers get to end, unless a request says otherwise.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._wanted = asyncio.Event()

    @property
    def wanted(self) -> bool:
        """Whether someone asked."""
        return self._wanted.is_set()

    def ask(self, grace: float | None = None) -> None:
        """Asks the server to stop; the first request's grace counts."""
        if grace is not None and not self.wanted:
            self.grace = grace
        self._wanted.set()

    async def within(self, seconds: float) -> bool:
        """Whether someone asks in the next seconds; returns when that is known."""
        try:
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        except TimeoutError:
            return False
        return True

    async def wait(self) -> None:
        """Returns when someone has asked."""
        await self._wanted.wait()
