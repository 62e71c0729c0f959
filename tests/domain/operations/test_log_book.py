from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.operations.log_book import LogBook, LogEntry, LogQuery


def entry(number: int, level: str = "INFO") -> LogEntry:
    return LogEntry(float(number), level, "test", f"entry {number}")


def filled(count: int, capacity: int = 100) -> LogBook:
    book = LogBook(capacity)
    for number in range(count):
        book.add(entry(number, "ERROR" if number % 2 else "INFO"))
    return book


def numbers(entries: object) -> list[int]:
    return [int(each.time) for each in entries]  # type: ignore[attr-defined]


def test_the_latest_entries_are_kept_and_no_more() -> None:
    assert numbers(filled(10, capacity=3).read(LogQuery())) == [7, 8, 9]


def test_a_query_takes_level_time_and_the_latest_up_to_its_limit() -> None:
    book = filled(10)
    assert numbers(book.read(LogQuery(least=40))) == [1, 3, 5, 7, 9]
    assert numbers(book.read(LogQuery(limit=2))) == [8, 9]
    assert numbers(book.read(LogQuery(start=3, end=5))) == [3, 4, 5]


def test_times_without_a_zone_are_utc_and_levels_come_in_any_case() -> None:
    query = LogQuery.parse("warning", None, "2026-01-31T12:00:00", "2026-01-31T13:00:00+01:00")
    assert query.least == 30
    assert query.start == query.end == 1_769_860_800


@pytest.mark.parametrize(
    ("field", "level", "limit", "start", "end"),
    [
        ("level", "LOUD", None, None, None),
        ("limit", None, 0, None, None),
        ("start_time", None, None, "noon", None),
        ("end_time", None, None, None, "2026-13-01"),
        ("start_time", None, None, "2026-01-02", "2026-01-01"),
    ],
)
def test_a_wrong_query_names_its_field(
    field: str, level: str | None, limit: int | None, start: str | None, end: str | None
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        LogQuery.parse(level, limit, start, end)
    assert refused.value.details == {"field": field}


async def test_followers_see_what_is_there_and_what_comes_from_any_thread() -> None:
    book = filled(2)
    seen: list[int] = []
    async with asyncio.timeout(10), aclosing(book.follow(LogQuery())) as entries:
        async for each in entries:
            seen.append(int(each.time))
            if len(seen) == 2:
                threading.Thread(target=lambda: [book.add(entry(number)) for number in (7, 8)]).start()
            if len(seen) == 4:
                break
    assert seen == [0, 1, 7, 8]
    assert not book._followers


async def test_followers_see_the_last_entry_and_end_when_following_does() -> None:
    book = filled(2)
    async with asyncio.timeout(10):
        following = asyncio.ensure_future(_followed(book))
        await asyncio.sleep(0)
        book.add(entry(7))
        book.end_following()
        assert await following == [0, 1, 7]
        assert await _followed(book) == [0, 1, 7]
    book.add(entry(8))
    assert len(book.read(LogQuery())) == 4


async def _followed(book: LogBook) -> list[int]:
    async with aclosing(book.follow(LogQuery())) as entries:
        return [int(each.time) async for each in entries]


async def test_a_slow_follower_holds_nothing_and_misses_what_was_pushed_out() -> None:
    book = LogBook(3)
    async with asyncio.timeout(10), aclosing(book.follow(LogQuery())) as entries:
        waiting = asyncio.ensure_future(anext(entries))
        await asyncio.sleep(0)
        for number in range(10):
            book.add(entry(number))
        assert (await waiting).time == 7
        assert [int((await anext(entries)).time) for _ in range(2)] == [8, 9]


def test_a_zone_whose_plus_was_not_escaped_is_read_all_the_same() -> None:
    written, arrived = (LogQuery.parse(None, None, f"2026-01-01T00:00:00{sign}01:00", None) for sign in "+ ")
    assert written == arrived
