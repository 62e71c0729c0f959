"""The limits of LlamaHome's API document, on a clock that the tests move."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from llamastead_server.adapters.rate_windows import MemoryWindows
from llamastead_server.domain.access.limits import LimitReached, LimitRules, Limits
from llamastead_server.domain.access.rights import Principal
from tests.fake_clock import FakeClock

ANN, BEN = Principal("token:ann", has_token=True), Principal("token:ben", has_token=True)
NOBODY = Principal("address:127.0.0.1")


def limits(clock: FakeClock, *rules: int | None) -> Limits:
    return Limits(MemoryWindows(clock), clock, LimitRules(*rules))


async def test_sixty_requests_pass_in_a_minute_and_the_next_when_the_first_is_a_minute_old() -> None:
    clock = FakeClock()
    held = limits(clock)
    for number in range(60):
        window = await held.count(ANN)
        assert window is not None
        assert (window.limit, window.remaining) == (60, 59 - number)
        clock.now += 0.5
    with pytest.raises(LimitReached, match="60 per minute") as refused:
        await held.count(ANN)
    assert refused.value.retry_after == pytest.approx(30)
    assert refused.value.window is not None
    assert (refused.value.window.remaining, refused.value.window.resets_at) == (0, pytest.approx(clock.now + 30))
    clock.now += 29.9
    with pytest.raises(LimitReached):
        await held.count(ANN)
    clock.now += 0.2
    await held.count(ANN)
    with pytest.raises(LimitReached):
        await held.count(ANN)
    clock.now += 0.5
    await held.count(ANN)


async def test_each_caller_has_a_window_of_its_own() -> None:
    held = limits(FakeClock(), 1)
    await held.count(ANN)
    await held.count(BEN)
    with pytest.raises(LimitReached):
        await held.count(ANN)


async def test_five_batch_operations_pass_in_a_minute_and_other_requests_still_do() -> None:
    clock = FakeClock()
    held = limits(clock)
    for number in range(5):
        window = await held.count(ANN, batch=True)
        assert window is not None
        assert (window.limit, window.remaining) == (5, 4 - number)
    with pytest.raises(LimitReached, match="batch operations: 5 per minute") as refused:
        await held.count(ANN, batch=True)
    assert refused.value.retry_after == 60
    # The refused operation was a request all the same.
    window = await held.count(ANN)
    assert window is not None
    assert window.remaining == 53
    clock.now += 60
    await held.count(ANN, batch=True)


async def test_ten_streams_are_open_at_once_and_one_that_ends_makes_room() -> None:
    held = limits(FakeClock())
    async with AsyncExitStack() as streams:
        for _ in range(9):
            await streams.enter_async_context(held.stream(ANN))
        async with held.stream(ANN):
            with pytest.raises(LimitReached, match="10 streams") as refused:
                await streams.enter_async_context(held.stream(ANN))
        assert refused.value.retry_after
        async with held.stream(BEN):
            await streams.enter_async_context(held.stream(ANN))
    async with held.stream(ANN):
        pass


async def test_a_stream_that_fails_makes_room_too() -> None:
    held = limits(FakeClock(), None, 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with held.stream(ANN):
                raise ZeroDivisionError


async def test_without_tokens_nothing_is_limited_unless_it_is_set() -> None:
    held = limits(FakeClock())
    assert [await held.count(NOBODY, batch=True) for _ in range(100)] == [None] * 100
    async with AsyncExitStack() as streams:
        for _ in range(100):
            await streams.enter_async_context(held.stream(NOBODY))
    held.rules = LimitRules(requests=1, streams=1, batch=1)
    await held.count(NOBODY)
    with pytest.raises(LimitReached):
        await held.count(NOBODY)
    async with held.stream(NOBODY):
        with pytest.raises(LimitReached):
            await held.stream(NOBODY).__aenter__()


async def test_zero_is_no_limit() -> None:
    held = limits(FakeClock(), 0, 0, 0)
    assert [await held.count(ANN, batch=True) for _ in range(100)] == [None] * 100
    async with AsyncExitStack() as streams:
        for _ in range(100):
            await streams.enter_async_context(held.stream(ANN))
