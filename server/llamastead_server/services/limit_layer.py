"""The layer that holds callers to their limits."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from google.protobuf.message import Message

from llamastead_server.domain.access.limits import LimitReached, Limits, Window
from llamastead_server.services.interceptors import Call
from llamastead_server.services.method_access import access


class LimitLayer:
    """Counts calls and streams, refuses those that are too many, and says in headers how many are left.

    It stands inside authentication, so a call without a valid token costs nobody anything.

    Args:
        limits: The limits of all callers.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Surrounds one call."""
        rules = access(call.method)
        caller = call.principal
        if caller is None or rules.unlimited:
            yield
            return
        try:
            window = await self._limits.count(caller, batch=rules.batch)
        except LimitReached as reached:
            call.headers += window_headers(reached.window)
            raise
        call.headers += window_headers(window)
        async with AsyncExitStack() as streams:

            async def hold(request: Message, first: bool) -> None:
                if first and rules.is_stream(request):
                    await streams.enter_async_context(self._limits.stream(caller))

            call.checks.append(hold)
            yield


def window_headers(window: Window | None) -> Iterator[tuple[str, str]]:
    """The headers that tell of a limit."""
    if window is not None:
        yield "x-ratelimit-limit", str(window.limit)
        yield "x-ratelimit-remaining", str(window.remaining)
        yield "x-ratelimit-reset", str(math.ceil(window.resets_at))
