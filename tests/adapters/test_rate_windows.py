from __future__ import annotations

import logging

import pytest

from llamastead_server.adapters import rate_windows
from llamastead_server.adapters.rate_windows import MemoryWindows, RedisWindows
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


async def test_while_redis_cannot_be_reached_the_server_counts_alone(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    windows = RedisWindows(f"redis://127.0.0.1:{free_port()}", clock)
    with caplog.at_level(logging.WARNING, "llamastead.limits"):
        allowed = [(await windows.hit("requests", "ann", 3))[0] for _ in range(4)]
        assert allowed == [True, True, True, False]
        # It is not asked again at once, and not complained of with each call.
        assert len(caplog.records) == 1
        clock.now += 5
        await windows.hit("requests", "ann", 3)
        assert len(caplog.records) == 2
    await windows.close()


async def test_a_url_that_is_none_is_named_with_its_setting() -> None:
    with pytest.raises(Conflict, match="LLAMASTEAD_REDIS_URL"):
        RedisWindows("redis://host:port", FakeClock())
