from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from google.api.httpbody_pb2 import HttpBody

from llamastead_server.domain.errors import NotFound, Unavailable
from llamastead_server.services.http_body import DONE, KEEP_ALIVE, json_body, late_errors, sse_event


async def numbers(count: int, pause: float = 0.0) -> AsyncIterator[HttpBody]:
    for number in range(count):
        if pause:
            await asyncio.sleep(pause)
        yield sse_event({"n": number})


async def collected(bodies: AsyncIterator[HttpBody]) -> list[bytes]:
    return [body.data async for body in bodies]


def test_json_and_events_have_their_content_types() -> None:
    assert json_body({"é": 1}).data == '{"é":1}'.encode()
    assert json_body({}).content_type == "application/json"
    assert sse_event({"a": None}).data == b'data: {"a":null}\n\n'
    assert sse_event({}).content_type == DONE.content_type == "text/event-stream"


def test_a_line_break_in_a_value_does_not_end_an_event() -> None:
    assert sse_event({"text": "a\n\nb\r"}).data.count(b"\n") == 2


async def test_slow_events_leave_one_by_one() -> None:
    assert await collected(late_errors(numbers(3, 0.02))) == [event.data async for event in numbers(3)]


async def test_events_that_wait_leave_together_and_in_order() -> None:
    messages = await collected(late_errors(numbers(1000)))
    assert len(messages) < 200
    assert b"".join(messages) == b"".join([event.data async for event in numbers(1000)])


async def test_an_error_before_the_first_event_is_raised() -> None:
    async def failing() -> AsyncIterator[HttpBody]:
        raise NotFound("Nothing there.")
        yield DONE

    with pytest.raises(NotFound):
        await collected(late_errors(failing()))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, {"message": "Gone.", "type": "server_error", "code": "unavailable"}),
        ("/api/stream", {"message": "Gone.", "code": "unavailable", "details": {}}),
    ],
)
async def test_a_later_error_is_the_last_event_after_all_others_and_is_logged(
    path: str | None, expected: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async def failing() -> AsyncIterator[HttpBody]:
        async for event in numbers(5):
            yield event
        raise Unavailable("Gone.")

    text = b"".join(await collected(late_errors(failing(), path))).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert [event.get("n") for event in events[:-1]] == list(range(5))
    assert events[-1] == {"error": expected}
    assert caplog.messages == ["a stream ends with an error: Gone."]


async def test_an_unexpected_later_error_leaks_nothing() -> None:
    async def failing() -> AsyncIterator[HttpBody]:
        yield DONE
        await asyncio.sleep(0.01)
        raise ZeroDivisionError("secret")

    last = (await collected(late_errors(failing())))[-1]
    assert b"secret" not in last
    assert b'"code":"internal"' in last


async def test_a_source_whose_work_was_cancelled_ends_with_an_error() -> None:
    async def failing() -> AsyncIterator[HttpBody]:
        yield sse_event({"n": 0})
        raise asyncio.CancelledError

    messages = await collected(late_errors(failing()))
    assert b"error" in messages[-1]


async def test_silence_after_the_first_event_is_filled_with_comments() -> None:
    messages = await collected(late_errors(numbers(2, 0.2), keep_alive=0.05))
    assert messages[0] == sse_event({"n": 0}).data
    assert KEEP_ALIVE.data in messages
    assert messages[-1] == sse_event({"n": 1}).data


async def test_closing_the_stream_closes_its_source() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[HttpBody]:
        try:
            while True:
                yield sse_event({})
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    stream = late_errors(endless())
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert closed.is_set()


async def test_a_reader_that_stops_reading_stops_the_source() -> None:
    made = 0

    async def counting() -> AsyncIterator[HttpBody]:
        nonlocal made
        while True:
            made += 1
            yield sse_event({})

    stream = late_errors(counting())
    await anext(stream)
    for _ in range(50):
        await asyncio.sleep(0)
    before = made
    await asyncio.sleep(0.05)
    assert made == before < 1000
    await stream.aclose()  # type: ignore[attr-defined]
