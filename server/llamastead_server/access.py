"""Who may call and how much, as the settings say: a part of the composition root."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.rate_windows import MemoryWindows, RedisWindows
from llamastead_server.adapters.redis_link import RedisLink
from llamastead_server.adapters.stream_leases import RedisStreams
from llamastead_server.adapters.token_store import SqlTokenStore
from llamastead_server.domain.access.limits import LimitRules, Limits
from llamastead_server.domain.access.tokens import Tokens
from llamastead_server.domain.errors import Conflict, Unavailable
from llamastead_server.settings import Settings

_log = logging.getLogger("llamastead")
_TOKENS_INTERVAL = 1.0


async def open_tokens(stack: AsyncExitStack, settings: Settings, database: Database) -> Tokens:
    """The tokens, kept up to date with what `llamastead tokens` does beside the running server.

    Raises:
        Conflict: Others can reach the server, and there is no token.
    """
    tokens = Tokens(SqlTokenStore(database), time.time, fixed=settings.api_tokens, exposed=settings.exposed)
    await tokens.refresh()
    if settings.exposed and not tokens.usable:
        raise Conflict(
            f"LLAMASTEAD_HOST is {settings.host}, which others can reach, and the server does not open itself to a "
            "network without tokens: make one with `llamastead tokens create`, set LLAMASTEAD_API_TOKENS, or leave the "
            "host at 127.0.0.1."
        )

    async def follow() -> None:
        while True:
            await asyncio.sleep(_TOKENS_INTERVAL)
            try:
                await tokens.refresh()
            except Unavailable:
                # The database has said so already.
                continue
            except Exception:
                _log.exception("the tokens can't be brought up to date")

    following = asyncio.create_task(follow())
    stack.callback(following.cancel)
    return tokens


def open_limits(stack: AsyncExitStack, settings: Settings) -> tuple[Limits, RedisLink | None]:
    """The limits, counted here or in Redis, and that Redis."""
    rules = LimitRules(settings.rate_limit_requests, settings.rate_limit_streams, settings.rate_limit_batch)
    if settings.redis_url is None:
        return Limits(MemoryWindows(time.time), time.time, rules), None
    redis = RedisLink(settings.redis_url, time.time)
    stack.push_async_callback(redis.close)
    streams = RedisStreams(redis, time.time)
    keeping = asyncio.create_task(streams.keep())
    stack.callback(keeping.cancel)
    return Limits(RedisWindows(redis, time.time), time.time, rules, streams), redis
