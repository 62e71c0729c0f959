"""How much one caller may ask for: requests and batch operations per minute, streams at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.errors import RateLimited
from llamastead_server.domain.ports import Clock

Kind = Literal["requests", "batch"]


@dataclass(frozen=True, slots=True)
class Window:
    """How many calls of one kind a caller has left.

    Attributes:
        limit: Calls allowed in any 60 seconds.
        remaining: Calls left now.
        resets_at: When the oldest counted call leaves the window, in seconds since the epoch.
    """

    limit: int
    remaining: int
    resets_at: float


class Windows(Protocol):
    """Counts the calls of the last 60 seconds, for each kind and caller."""

    async def hit(self, kind: Kind, caller: str, limit: int) -> tuple[bool, Window]:
        """Counts a call if fewer than `limit` are counted; tells whether it did."""
        ...


class Streams(Protocol):
    """Counts the streams that are open, for each caller."""

    def hold(self, caller: str, limit: int) -> AbstractAsyncContextManager[bool]:
        """Holds one of the caller's streams while the block runs, if fewer than `limit` are held; tells whether.

        A limit of 0 is none.
        """
        ...


class OwnStreams:
    """Counts the streams of this server alone."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, caller: str, limit: int) -> AsyncIterator[bool]:
        """Holds one of the caller's streams while the block runs, if fewer than `limit` are held; tells whether."""
        if limit and self._open[caller] >= limit:
            yield False
            return
        self._open[caller] += 1
        try:
            yield True
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


@dataclass(frozen=True, slots=True)
class LimitRules:
    """What one caller may do; 0 is no limit, None is the documented limit where tokens are needed, else none.

    Attributes:
        requests: Calls per minute.
        streams: Streams at a time.
        batch: Batch operations per minute.
    """

    requests: int | None = None
    streams: int | None = None
    batch: int | None = None


DOCUMENTED = LimitRules(requests=60, streams=10, batch=5)
"""The limits that LlamaHome's API document promises."""


class LimitReached(RateLimited):
    """A caller asked for more than the limits allow.

    Args:
        window: The limit that was reached; None for streams, which leave whenever they end.
    """

    def __init__(self, message: str, *, limit: int, retry_after: float, window: Window | None = None) -> None:
        super().__init__(message, details={"limit": str(limit)}, retry_after=retry_after)
        self.window = window


class Limits:
    """The limits of all callers.

    Args:
        windows: Counts calls; servers can share it.
        clock: Seconds since the epoch.
        rules: What one caller may do; can be replaced at any time.
        streams: Counts streams; servers can share it. By default this server counts alone.
    """

    def __init__(
        self, windows: Windows, clock: Clock, rules: LimitRules = LimitRules(), streams: Streams | None = None
    ) -> None:
        self._windows = windows
        self._clock = clock
        self._streams = streams or OwnStreams()
        self.rules = rules

    async def count(self, caller: Principal, *, batch: bool = False) -> Window | None:
        """Counts a call; returns the window with the least room, or None where there is no limit.

        A batch operation counts as a request too, even when it is refused as a batch operation.

        Raises:
            LimitReached: It is one too many.
        """
        windows = [await self._hit("requests", caller, _limit(caller, self.rules.requests, DOCUMENTED.requests))]
        if batch:
            windows.append(await self._hit("batch", caller, _limit(caller, self.rules.batch, DOCUMENTED.batch)))
        return min((window for window in windows if window is not None), key=lambda each: each.remaining, default=None)

    @asynccontextmanager
    async def stream(self, caller: Principal) -> AsyncIterator[None]:
        """Holds one of the caller's streams while the block runs.

        Raises:
            LimitReached: All of them are taken.
        """
        limit = _limit(caller, self.rules.streams, DOCUMENTED.streams)
        async with self._streams.hold(caller.id, limit) as held:
            if not held:
                raise LimitReached(
                    f"{limit} streams are open already, and no more are allowed: end one, or wait for an end.",
                    limit=limit,
                    retry_after=1.0,
                )
            yield

    async def _hit(self, kind: Kind, caller: Principal, limit: int) -> Window | None:
        if not limit:
            return None
        allowed, window = await self._windows.hit(kind, caller.id, limit)
        if not allowed:
            what = "requests" if kind == "requests" else "batch operations"
            wait = max(window.resets_at - self._clock(), 0.0)
            raise LimitReached(
                f"Too many {what}: {limit} per minute are allowed. Try again in {max(1, math.ceil(wait))} s.",
                limit=limit,
                retry_after=wait,
                window=window,
            )
        return window


def _limit(caller: Principal, rule: int | None, documented: int | None) -> int:
    if rule is not None:
        return rule
    return (documented or 0) if caller.has_token else 0
