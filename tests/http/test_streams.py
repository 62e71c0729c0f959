"""Server-Sent Events through the gateway."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import pytest

from llamastead_server.domain.errors import Overloaded
from tests.gateway import Running, ScriptedChat

CHAT = "/v1/projects/a/b/chat/completions"


async def test_json_or_events_come_from_the_same_path(gateway: Running, chat: ScriptedChat) -> None:
    plain = await gateway.http.post(CHAT, json={})
    assert (plain.headers["content-type"], plain.json()) == ("application/json", {"echo": "b"})
    chat.headers = [("x-session-id", "s-1"), ("x-llamastead-trimmed", "2")]
    events = await gateway.http.post(CHAT, json={"stream": True})
    assert events.headers["content-type"] == "text/event-stream"
    assert events.headers["cache-control"] == "no-cache"
    assert events.headers["x-accel-buffering"] == "no"
    assert (events.headers["x-session-id"], events.headers["x-llamastead-trimmed"]) == ("s-1", "2")
    assert events.text == 'data: {"n":0}\n\ndata: {"n":1}\n\ndata: {"n":2}\n\ndata: [DONE]\n\n'


async def test_each_event_leaves_when_it_is_made(gateway: Running, chat: ScriptedChat) -> None:
    chat.events, chat.pause = 10, 0.1
    arrivals = []
    async with gateway.http.stream("POST", CHAT, json={"stream": True}) as answer:
        async for data in answer.aiter_raw():
            arrivals.append((time.monotonic(), data))
    assert len(arrivals) >= 9
    gaps = sorted(later[0] - earlier[0] for earlier, later in itertools.pairwise(arrivals))
    # Held back and sent together, the events would have gaps of nothing.
    assert gaps[len(gaps) // 2] > 0.05


async def test_an_error_before_the_first_event_is_a_status(gateway: Running, chat: ScriptedChat) -> None:
    chat.error = Overloaded("Full.", retry_after=3)
    answer = await gateway.http.post(CHAT, json={"stream": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["detail"] == "Full."
    chat.error, chat.fails_after = None, 0
    answer = await gateway.http.post(CHAT, json={"stream": True})
    assert (answer.status_code, answer.json()["detail"]) == (503, "The engine died.")


async def test_a_later_error_is_the_last_event(gateway: Running, chat: ScriptedChat) -> None:
    chat.fails_after, chat.pause = 2, 0.02
    answer = await gateway.http.post(CHAT, json={"stream": True})
    assert answer.status_code == 200
    *events, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert events == [{"n": 0}, {"n": 1}]
    assert last == {"error": {"message": "The engine died.", "type": "server_error", "code": "unavailable"}}


async def test_a_client_that_goes_away_ends_the_stream_at_its_source(gateway: Running, chat: ScriptedChat) -> None:
    chat.events, chat.pause = 100_000, 0.01
    async with gateway.http.stream("POST", CHAT, json={"stream": True}) as answer:
        await anext(answer.aiter_raw())
    async with asyncio.timeout(5):
        await chat.ended.wait()


async def test_a_client_that_goes_away_before_the_first_event_ends_the_work(
    gateway: Running, chat: ScriptedChat
) -> None:
    chat.events, chat.pause = 2, 60
    request = asyncio.create_task(gateway.http.post(CHAT, json={"stream": True}))
    while not chat.requests:
        await asyncio.sleep(0.01)
    request.cancel()
    async with asyncio.timeout(5):
        await chat.ended.wait()


async def test_a_client_that_stops_reading_stops_the_source(gateway: Running, chat: ScriptedChat) -> None:
    chat.events = 10_000_000
    async with gateway.http.stream("POST", CHAT, json={"stream": True}) as answer:
        stream = answer.aiter_raw(1024)
        await anext(stream)
        async with asyncio.timeout(30):
            before = -1
            while chat.made != before:
                before = chat.made
                await asyncio.sleep(0.5)
        assert chat.made < chat.events
        assert not chat.ended.is_set()
    async with asyncio.timeout(10):
        await chat.ended.wait()


async def test_a_client_that_reads_no_more_is_let_go(
    gateway: Running, chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamastead_server.services.interceptors._LONGEST_WRITE", 0.5)
    chat.events = 10_000_000
    async with gateway.http.stream("POST", CHAT, json={"stream": True}) as answer:
        await anext(answer.aiter_raw(1024))
        async with asyncio.timeout(30):
            await chat.ended.wait()
    assert (await gateway.http.post(CHAT, json={})).status_code == 200


async def test_many_streams_run_side_by_side(gateway: Running, chat: ScriptedChat) -> None:
    chat.events, chat.pause = 20, 0.01
    answers = await asyncio.gather(*(gateway.http.post(CHAT, json={"stream": True}) for _ in range(50)))
    assert all(answer.text.count("data: ") == 21 and answer.text.endswith("[DONE]\n\n") for answer in answers)
