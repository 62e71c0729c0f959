"""The Redis that several servers share: asked while it answers, done without while it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from llamastead_server.domain.errors import Conflict
from llamastead_server.domain.ports import Clock

if TYPE_CHECKING:
    from redis.asyncio import Redis

_log = logging.getLogger("llamastead.limits")
T = TypeVar("T")
PREFIX = "llamastead"
"""What the names of all keys begin with."""
_ANSWER_SECONDS = 0.5
_QUESTION_SECONDS = 1.0
_PAUSE = 5.0
_MOST_CONNECTIONS = 64


class RedisLink:
    """A Redis that is asked only while it answers, so that its failure costs callers next to no time.

    Args:
        url: Redis' URL: `redis://`, `rediss://` or `redis+unix://`.
        clock: Seconds since the epoch.

    Raises:
        Conflict: The URL is none, or the library for Redis is not installed.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        try:
            # An extra: only servers that share limits need it.
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.exceptions import RedisError

            self.pool: Any = BlockingConnectionPool.from_url(
                url.replace("redis+unix:", "unix:", 1),
                max_connections=_MOST_CONNECTIONS,
                timeout=_ANSWER_SECONDS,
                socket_connect_timeout=_ANSWER_SECONDS,
                socket_timeout=_ANSWER_SECONDS,
            )
        except (ImportError, ValueError) as error:
            raise Conflict(
                f"LLAMASTEAD_REDIS_URL can't be used: {error}. It needs the extra `redis` and a URL such as "
                "redis://host:6379."
            ) from None
        self.client: Redis = Redis(connection_pool=self.pool)
        self._failures = (RedisError, OSError, TimeoutError)
        self._clock = clock
        self._away = False
        self._next_try = 0.0

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """Gives Redis' answer to a question; None while it can't be reached, and it is tried again every 5 seconds."""
        was_away = self._away
        if was_away:
            if self._clock() < self._next_try:
                return None
            # One call tries; the others need not wait for that.
            self._next_try = self._clock() + _PAUSE
        try:
            async with asyncio.timeout(_QUESTION_SECONDS):
                answer = await question()
        except self._failures as error:
            self._next_try = self._clock() + _PAUSE
            # Of the calls that were asking together, one tells.
            if self._away == was_away:
                _log.warning("Redis can't be reached, so this server counts alone: %s", error or type(error).__name__)
            self._away = True
            return None
        if self._away:
            self._away = False
            _log.info("Redis counts for all servers again")
        return answer

    async def answers(self) -> bool:
        """Whether it can be reached."""

        async def ping() -> bool:
            await self.client.ping()
            return True

        return bool(await self.ask(ping))

    async def close(self) -> None:
        """Ends the connections."""
        await self.client.aclose()
        await self.pool.disconnect()
