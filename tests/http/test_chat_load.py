"""Chats under pressure: clients that leave, and more of them than fit. One slot and a short queue make it visible."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running_server import RunningServer, running

CHAT = "/v1/projects/default/quickstart/chat/completions"
SESSIONS = "/v1/projects/default/quickstart/chat/sessions"
SHORT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "rag_enabled": False}
# A long array: it does not end by itself before the window does.
LONG: dict[str, Any] = {
    **SHORT,
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 1900,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "numbers",
            "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 1500},
        },
    },
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"LLAMASTEAD_ENGINE_SLOTS": "1", "LLAMASTEAD_ENGINE_QUEUE": "2"}
    folder = tmp_path_factory.mktemp("small")
    with running(folder, "--example", "quickstart_rag", settings=settings) as server:
        yield server


def test_a_client_that_leaves_frees_the_slot_and_leaves_no_history(small: RunningServer) -> None:
    with httpx.Client(base_url=small.url, timeout=30) as client:
        for number in range(6):
            session = {"X-Session-ID": f"left-{number}"}
            with client.stream("POST", CHAT, json={**LONG, "stream": True}, headers=session) as answer:
                assert answer.status_code == 200
                next(answer.iter_lines())
        # With one slot, this is only answered when none of the six still runs.
        assert client.post(CHAT, json=SHORT).status_code == 200
        for number in range(6):
            assert client.get(f"{SESSIONS}/left-{number}/history").json()["messages"] == []


def test_a_client_that_leaves_during_the_prompt_frees_the_slot(small: RunningServer) -> None:
    prompt = {"role": "user", "content": " ".join(f"word{number}" for number in range(450))}
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(small.url + CHAT, json={**LONG, "messages": [prompt]}, timeout=0.02)
    assert httpx.post(small.url + CHAT, json=SHORT, timeout=30).status_code == 200


async def test_more_requests_than_fit_are_refused_at_once_and_told_when_to_return(small: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=small.url, timeout=60) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json={**LONG, "max_tokens": 60}) for _ in range(12)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [503] * 9
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"
    assert httpx.post(small.url + CHAT, json=SHORT, timeout=30).status_code == 200


async def test_turns_of_one_session_never_interleave(small: RunningServer) -> None:
    session = {"X-Session-ID": "crowded"}
    body = {**SHORT, "temperature": 0}
    async with httpx.AsyncClient(base_url=small.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(
                client.post(
                    CHAT, headers=session, json={**body, "messages": [{"role": "user", "content": f"Turn {n}"}]}
                )
                for n in range(10)
            )
        )
        assert [answer.status_code for answer in answers] == [200] * 10
        history = (await client.get(f"{SESSIONS}/crowded/history")).json()["messages"]
    assert [message["role"] for message in history] == ["user", "assistant"] * 10
    assert {message["content"] for message in history[::2]} == {f"Turn {n}" for n in range(10)}


def test_a_stream_that_reaches_the_window_ends_with_length(small: RunningServer) -> None:
    answer = httpx.post(small.url + CHAT, json={**LONG, "max_tokens": 30, "stream": True}, timeout=60)
    *_, last, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"


def test_stopping_the_server_ends_a_running_stream_and_exits_cleanly(tmp_path: Path) -> None:
    settings = {"LLAMASTEAD_SHUTDOWN_GRACE": "0"}
    with (
        running(tmp_path, "--example", "quickstart_rag", settings=settings) as server,
        httpx.stream("POST", server.url + CHAT, json={**LONG, "stream": True}, timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        assert server.stop() == 0
        *_, last = [line for line in lines if line]
    # Not `[DONE]`, and not just an end: the client must see that the answer is not complete.
    assert "error" in json.loads(last.removeprefix("data: "))
    assert "Traceback" not in server.log
