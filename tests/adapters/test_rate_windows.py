from __future__ import annotations

import asyncio
import logging
import time
from types import SimpleNamespace

import pytest

from llamastead_server.adapters import rate_windows
from llamastead_server.adapters.rate_windows import MemoryWindows, RedisWindows
from llamastead_server.adapters.redis_link import RedisLink
from llamastead_server.domain.errors import Conflict
from tests.fake_clock import FakeClock
from tests.running_server import free_port


async def test_a_window_moves_with_the_clock() -> None:
    clock = FakeClock()
    windows = MemoryWindows(clock)
    began = clock.now
    allowed = []
    for _ in range(4):
        allowed.append((await windows.hit("requests", "ann", 2))[0])
        clock.now += 20
    assert allowed == [True, True, False, True]
    _, window = await windows.hit("requests", "ann", 2)
    assert (window.limit, window.remaining, window.resets_at) == (2, 0, began + 120)


async def test_kinds_and_callers_are_counted_apart() -> None:
    windows = MemoryWindows(FakeClock())
    for kind in ("requests", "batch"):
        for caller in ("ann", "ben", "a/b", "a"):
            assert (await windows.hit(kind, caller, 1))[0]  # type: ignore[arg-type]


async def test_callers_that_have_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_windows, "_MOST_CALLERS", 10)
    clock = FakeClock()
    windows = MemoryWindows(clock)
    for number in range(100):
        await windows.hit("requests", f"caller-{number}", 5)
        clock.now += 61
    assert len(windows._windows._limiter.storage._hits) <= 11  # type: ignore[attr-defined]


async def test_two_servers_on_one_redis_count_together(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    # The library asks the system for the time where it asks Redis.
    monkeypatch.setattr("limits.aio.storage.redis.redispy.time", SimpleNamespace(time=clock))
    links = [RedisLink(redis_url, clock) for _ in range(2)]
    servers = [RedisWindows(link, clock) for link in links]
    began = clock.now
    counted = []
    for number in range(5):
        counted.append(await servers[number % 2].hit("requests", "ann", 3))
        clock.now += 10
    assert [allowed for allowed, _ in counted] == [True, True, True, False, False]
    assert [window.remaining for _, window in counted] == [2, 1, 0, 0, 0]
    assert {window.resets_at for _, window in counted} == {began + 60}
    assert (await servers[1].hit("batch", "ann", 3))[0]
    assert (await servers[1].hit("requests", "ben", 3))[0]
    clock.now = began + 61
    assert [(await server.hit("requests", "ann", 3))[0] for server in servers] == [True, False]
    for link in links:
        await link.close()


async def test_calls_at_once_on_two_servers_never_exceed_the_limit(redis_url: str) -> None:
    links = [RedisLink(redis_url, time.time) for _ in range(2)]
    servers = [RedisWindows(link, time.time) for link in links]
    counted = await asyncio.gather(*(servers[number % 2].hit("requests", "ann", 20) for number in range(60)))
    assert sum(allowed for allowed, _ in counted) == 20
    for link in links:
        await link.close()


async def test_while_redis_cannot_be_reached_the_server_counts_alone(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    link = RedisLink(f"redis://127.0.0.1:{free_port()}", clock)
    windows = RedisWindows(link, clock)
    with caplog.at_level(logging.WARNING, "llamastead.limits"):
        counted = await asyncio.gather(*(windows.hit("requests", "ann", 3) for _ in range(4)))
        assert [allowed for allowed, _ in counted] == [True, True, True, False]
        await windows.hit("requests", "ann", 3)
        # It is not asked again at once, and not complained of with each call.
        assert len(caplog.records) == 1
        clock.now += 5
        await windows.hit("requests", "ann", 3)
        assert len(caplog.records) == 2
    await link.close()


async def test_a_url_that_is_none_is_named_with_its_setting() -> None:
    with pytest.raises(Conflict, match="LLAMASTEAD_REDIS_URL"):
        RedisLink("redis://host:port", FakeClock())
