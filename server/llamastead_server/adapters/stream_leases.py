"""The streams that callers hold on all servers, as leases in Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from llamastead_server.adapters.redis_link import PREFIX, RedisLink
from llamastead_server.domain.access.limits import OwnStreams
from llamastead_server.domain.ports import Clock

LEASE_SECONDS = 30.0
"""How long a stream counts after its server was last heard of."""
_RENEWAL_SECONDS = LEASE_SECONDS / 3

# KEYS: the caller's leases, scored by their ends. ARGV: now, the limit, the new lease's end and name, milliseconds to
# keep all of them.
_TAKE = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
"""


class RedisStreams:
    """Counts the streams that all servers on one Redis hold.

    Each stream is a lease, renewed while it lives; those of a server that was killed run out. While Redis can't be
    reached, each server counts alone, and makes its streams known when Redis is back. The servers' clocks must agree
    to within seconds.

    Args:
        link: The Redis.
        clock: Seconds since the epoch.
    """

    def __init__(self, link: RedisLink, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._own = OwnStreams()
        self._take: Any = link.client.register_script(_TAKE)
        self._leases: dict[str, str] = {}
        self._ending: set[asyncio.Task[None]] = set()
        # A lease that ends must not be renewed by what was read before.
        self._order = asyncio.Lock()

    @asynccontextmanager
    async def hold(self, caller: str, limit: int) -> AsyncIterator[bool]:
        """Holds one of the caller's streams while the block runs, if fewer than `limit` are held; tells whether."""
        async with self._own.hold(caller, limit) as held:
            if not held:
                yield False
                return
            lease = uuid.uuid4().hex
            taken = True
            try:
                # Without a limit the next renewal makes it known: one may be set while the stream is open.
                if limit:
                    taken = await self._link.ask(lambda: self._ask(caller, limit, lease)) != 0
                if taken:
                    self._leases[lease] = caller
                yield taken
            finally:
                self._leases.pop(lease, None)
                if taken:
                    await self._end(caller, lease)

    async def renew(self) -> None:
        """Lets the leases of all open streams last from now on."""
        async with self._order:
            if self._leases:
                await self._link.ask(self._renew)

    async def keep(self) -> None:
        """Renews the leases until it is cancelled."""
        while True:
            await asyncio.sleep(_RENEWAL_SECONDS)
            await self.renew()

    async def _ask(self, caller: str, limit: int, lease: str) -> int:
        now = self._clock()
        given = [now, limit, now + LEASE_SECONDS, lease, int(LEASE_SECONDS * 1000)]
        return int(await self._take(keys=[_key(caller)], args=given))

    async def _renew(self) -> None:
        until = self._clock() + LEASE_SECONDS
        pipeline = self._link.client.pipeline(transaction=False)
        for lease, caller in self._leases.items():
            pipeline.zadd(_key(caller), {lease: until})
        for caller in set(self._leases.values()):
            pipeline.pexpire(_key(caller), int(LEASE_SECONDS * 1000))
        await pipeline.execute()

    async def _end(self, caller: str, lease: str) -> None:
        # It is awaited, so that the caller's next stream finds the room; and it goes on when the call is cancelled.
        ending = asyncio.create_task(self._forget(caller, lease))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.shield(ending)

    async def _forget(self, caller: str, lease: str) -> None:
        async with self._order:
            await self._link.ask(lambda: self._link.client.zrem(_key(caller), lease))


def _key(caller: str) -> str:
    return f"{PREFIX}:streams:{caller}"
