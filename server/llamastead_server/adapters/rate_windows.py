"""Moving windows of one minute, counted by the library `limits` in this process or in Redis."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.base import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError, StorageError

from llamastead_server.domain.access.limits import Kind, Window
from llamastead_server.domain.errors import Conflict
from llamastead_server.domain.ports import Clock

_log = logging.getLogger("llamastead.limits")
_PREFIX = "llamastead"
_MOST_CALLERS = 10_000
_REDIS_SECONDS = 0.5
_REDIS_PAUSE = 5.0


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
        url: Redis' URL: `redis://`, `rediss://` or `redis+unix://`.
        clock: Seconds since the epoch, for the counts without Redis.

    Raises:
        Conflict: The URL is none, or the library for Redis is not installed.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        try:
            self._storage = RedisStorage(
                f"async+{url}",
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix=_PREFIX,
                socket_connect_timeout=_REDIS_SECONDS,
                socket_timeout=_REDIS_SECONDS,
            )
        except (ConfigurationError, ValueError) as error:
            raise Conflict(
                f"LLAMASTEAD_REDIS_URL can't be used: {error}. It needs the extra `redis` and a URL such as "
                "redis://host:6379."
            ) from None
        self._shared = _Windows(self._storage)
        self._alone = MemoryWindows(clock)
        self._clock = clock
        self._next_try = 0.0

    async def hit(self, kind: Kind, caller: str, limit: int) -> tuple[bool, Window]:
        """Counts a call if fewer than `limit` are counted; tells whether it did."""
        if self._clock() >= self._next_try:
            try:
                counted = await self._shared.hit(kind, caller, limit)
            except StorageError as error:
                self._next_try = self._clock() + _REDIS_PAUSE
                _log.warning("Redis can't be reached, so this server counts calls alone: %s", error.storage_error)
            else:
                if self._next_try:
                    self._next_try = 0.0
                    _log.info("Redis counts calls again")
                return counted
        return await self._alone.hit(kind, caller, limit)

    async def close(self) -> None:
        """Ends the connections."""
        bridge: Any = self._storage.bridge
        await bridge.get_connection().aclose()


class _Windows:
    """The library's strategy, one window a minute for each kind and caller; a changed limit begins a new one."""

    def __init__(self, storage: Storage) -> None:
        self._limiter = MovingWindowRateLimiter(storage)

    async def hit(self, kind: Kind, caller: str, limit: int) -> tuple[bool, Window]:
        item = RateLimitItemPerMinute(limit, namespace=_PREFIX)
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
