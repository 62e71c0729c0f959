"""Moving windows of one minute, counted by the library `limits` in this process or in Redis."""

from __future__ import annotations

from collections import deque
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.base import Storage
from limits.aio.strategies import MovingWindowRateLimiter

from llamastead_server.adapters.redis_link import PREFIX, RedisLink
from llamastead_server.domain.access.limits import Kind, Window
from llamastead_server.domain.ports import Clock

_MOST_CALLERS = 10_000


class MemoryWindows:
    """Counts the calls that this process sees.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Clock) -> None:
        self._windows = _Windows(_ClockedStorage(clock))

    async def hit(self, kind: Kind, caller: str, limit: int) -> tuple[bool, Window]:
        """Counts a call if fewer than `limit` are counted; tells whether it did."""
        return await self._windows.hit(kind, caller, limit)


class RedisWindows:
    """Counts the calls that all servers on one Redis see.

    While Redis can't be reached, each server counts alone: no caller is refused for that, and none is unlimited.

    Args:
        link: The Redis.
        clock: Seconds since the epoch, for the counts without Redis.
    """

    def __init__(self, link: RedisLink, clock: Clock) -> None:
        options: Any = {"connection_pool": link.pool}
        self._shared = _Windows(RedisStorage("async+redis://", implementation="redispy", key_prefix=PREFIX, **options))
        self._alone = MemoryWindows(clock)
        self._link = link

    async def hit(self, kind: Kind, caller: str, limit: int) -> tuple[bool, Window]:
        """Counts a call if fewer than `limit` are counted; tells whether it did."""
        counted = await self._link.ask(lambda: self._shared.hit(kind, caller, limit))
        return counted or await self._alone.hit(kind, caller, limit)


class _Windows:
    """The library's strategy, one window a minute for each kind and caller; a changed limit begins a new one."""

    def __init__(self, storage: Storage) -> None:
        self._limiter = MovingWindowRateLimiter(storage)

    async def hit(self, kind: Kind, caller: str, limit: int) -> tuple[bool, Window]:
        item = RateLimitItemPerMinute(limit, namespace=PREFIX)
        allowed = await self._limiter.hit(item, kind, caller)
        stats = await self._limiter.get_window_stats(item, kind, caller)
        return allowed, Window(limit, max(0, stats.remaining), stats.reset_time)


class _ClockedStorage(MemoryStorage):
    """The library's storage in memory, on a clock that can be another one than the system's."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._hits: dict[str, deque[float]] = {}

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        hits = self._current(key, expiry)
        if len(hits) + amount > limit:
            return False
        hits.extend([self._clock()] * amount)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        hits = self._current(key, expiry)
        return (hits[0] if hits else self._clock()), len(hits)

    def _current(self, key: str, expiry: int) -> deque[float]:
        oldest = self._clock() - expiry
        if len(self._hits) >= _MOST_CALLERS:
            self._hits = {each: hits for each, hits in self._hits.items() if hits and hits[-1] > oldest}
        hits = self._hits.setdefault(key, deque())
        while hits and hits[0] <= oldest:
            hits.popleft()
        return hits
