"""Models on other servers, against a real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from llamastead_server.adapters.remote_engine import HttpEngines
from llamastead_server.domain.errors import (
    EngineFailed,
    InvalidRequest,
    LlamasteadError,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from llamastead_server.domain.models.generation import (
    Delta,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Message,
    Sampling,
    Started,
    ToolCall,
    ToolCalled,
    Usage,
)
from llamastead_server.domain.models.routing import RemoteModel
from tests.remote_server import USAGE, RemoteServer, called, ended, remote_server, said

KEY = "sk-very-secret"
ASK = (Message("user", "Hello!"),)


class Remote:
    def __init__(self, server: RemoteServer, engines: HttpEngines) -> None:
        self.server = server
        self.engines = engines

    async def events(self, *, model: RemoteModel | None = None, **request: Any) -> list[GenerationEvent]:
        asked = GenerationRequest(**{"messages": ASK, **request})
        model = model or RemoteModel("gpt", self.server.base_url, self.server.host, KEY)
        async with self.engines.lease(model) as engine, aclosing(engine.generate(asked)) as events:
            return [event async for event in events]


@pytest.fixture
async def remote(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Remote]:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with remote_server() as server, HttpEngines(timeout=20) as engines:
        yield Remote(server, engines)


async def test_further_fields_are_sent_and_the_requests_own_win(remote: Remote) -> None:
    extra = {"n_ctx": 4096, "temperature": 2}
    model = RemoteModel("gpt", remote.server.base_url, remote.server.host, KEY, extra)
    await remote.events(model=model, sampling=Sampling(temperature=0.25, top_p=1))
    body = remote.server.asked[0][2]
    assert (body["n_ctx"], body["temperature"], body["model"]) == (4096, 0.25, "gpt")


async def test_a_completion_streams_and_ends_with_the_others_usage(remote: Remote) -> None:
    events = await remote.events()
    assert events == [Started(), Delta("Hello"), Delta(" there."), Finished("stop", Usage(9, 2))]
    path, headers, body = remote.server.asked[0]
    assert (path, headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (body["model"], body["stream"], body["messages"]) == ("gpt", True, [{"role": "user", "content": "Hello!"}])


async def test_every_parameter_travels_and_absent_ones_do_not(remote: Remote) -> None:
    sampling = Sampling(0.5, 0.9, 3, 0.1, 1.1, 0.2, 0.3, 7, {5: -100.0})
    await remote.events(sampling=sampling, max_tokens=9, stop=("x",), top_logprobs=2, json_schema='{"type": "object"}')
    body = remote.server.asked[0][2]
    for name, value in {
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repeat_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "seed": 7, "logit_bias": {"5": -100.0}, "max_tokens": 9, "stop": ["x"],
        "logprobs": True, "top_logprobs": 2,
    }.items():  # fmt: skip
        assert body[name] == value
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    await remote.events()
    assert set(remote.server.asked[1][2]) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize("strict", [True, False])
async def test_a_schema_is_as_strict_for_the_other_server_as_it_was_asked_for(remote: Remote, strict: bool) -> None:
    await remote.events(json_schema="{}", json_strict=strict)
    assert remote.server.asked[0][2]["response_format"]["json_schema"].get("strict", False) is strict


async def test_tools_travel_natively_and_calls_come_back_whole(remote: Remote) -> None:
    remote.server.chunks = [
        called(0, name="weather", arguments=""),
        called(0, arguments='{"city"'),
        called(0, arguments=': "Oslo"}'),
        called(1, name="time"),
        ended("tool_calls"),
    ]
    tool = {"type": "function", "function": {"name": "weather"}}
    history = (*ASK, Message("assistant", "", (ToolCall("c9", "weather", "{}"),)), Message("tool", "rain", (), "c9"))
    events = await remote.events(messages=history, tools=[tool], tool_choice="required", json_schema="{}")
    assert events[1:3] == [
        ToolCalled(ToolCall("c0", "weather", '{"city": "Oslo"}')),
        ToolCalled(ToolCall("c1", "time", "{}")),
    ]
    assert isinstance(events[3], Finished)
    assert events[3].reason == "tool_calls"
    assert events[3].usage.prompt_tokens > 0
    body = remote.server.asked[0][2]
    assert (body["tools"], body["tool_choice"], "response_format" in body) == ([tool], "required", False)
    call = {"id": "c9", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    assert body["messages"][1:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c9"},
    ]


@pytest.mark.parametrize(
    "parts",
    [
        [{"index": 0, "id": "a"}, {"index": 0, "id": "b"}],
        [{"id": "a"}, {"id": "b"}],
        [{}, {}],
        [{"index": None, "id": ""}, {"index": None, "id": ""}],
    ],
    ids=str,
)
async def test_calls_that_a_server_does_not_number_stay_apart(remote: Remote, parts: list[dict[str, Any]]) -> None:
    calls = [{**part, "function": {"name": name, "arguments": "{"}} for part, name in zip(parts, "fg", strict=True)]
    calls.insert(1, {**parts[0], "function": {"arguments": "}"}})
    calls.append({**parts[1], "function": {"arguments": "}"}})
    remote.server.chunks = [{"choices": [{"delta": {"tool_calls": [call]}}]} for call in calls] + [ended("stop")]
    called = [event.call for event in await remote.events() if isinstance(event, ToolCalled)]
    assert [(call.name, call.arguments) for call in called] == [("f", "{}"), ("g", "{}")]
    assert len({call.id for call in called}) == 2


async def test_why_a_model_refuses_is_what_it_said(remote: Remote) -> None:
    remote.server.chunks = [{"choices": [{"delta": {"refusal": "I can't."}}]}, ended("stop")]
    assert (await remote.events())[1] == Delta("I can't.")


async def test_half_a_character_does_not_end_the_answer(remote: Remote) -> None:
    remote.server.chunks = [said("a\ud83d"), said("\ude00b \U0001f600"), ended("stop")]
    assert (await remote.events())[1:3] == [Delta("a?"), Delta("?b \U0001f600")]
    remote.server.status = 400
    remote.server.error = {"error": {"message": "no \ud83d"}}
    with pytest.raises(InvalidRequest, match=r"no \?$"):
        await remote.events()


@pytest.mark.parametrize("number", ["-Infinity", "NaN", "-1e999", "0.5"])
async def test_log_probabilities_are_numbers_that_json_knows(remote: Remote, number: str) -> None:
    chunk = '{"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": %s}]}}]}'
    remote.server.chunks = [chunk % number, ended("stop")]
    delta = (await remote.events(top_logprobs=0))[1]
    assert isinstance(delta, Delta)
    assert -9999.0 <= delta.logprobs[0].logprob <= 0.0


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json"])
async def test_a_page_instead_of_a_stream_is_told_before_anything_is_said(remote: Remote, kind: str) -> None:
    remote.server.kind = kind
    remote.server.chunks = []
    with pytest.raises(Unavailable, match=f"answers with {kind.partition(';')[0]}, not with a stream"):
        await remote.events()


async def test_an_answer_without_end_is_given_up(remote: Remote) -> None:
    remote.server.chunks = [said("y" * (1 << 20))] * 20
    with pytest.raises(EngineFailed, match="said more than is read"):
        await remote.events()


async def test_log_probabilities_come_back(remote: Remote) -> None:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1}]}
    remote.server.chunks = [said("a", logprobs={"content": [entry]}), ended("length")]
    delta = (await remote.events(top_logprobs=1))[1]
    assert isinstance(delta, Delta)
    assert (delta.logprobs[0].token_bytes, delta.logprobs[0].top[0].token_bytes) == (b"a", b"b")


@pytest.mark.parametrize(
    ("status", "error", "word"),
    [
        (400, InvalidRequest, "too long"),
        (401, Unavailable, "does not accept the project's api_key"),
        (403, Unavailable, "does not accept the project's api_key"),
        (404, ModelNotFound, "'gpt' is not found"),
        (422, InvalidRequest, "too long"),
        (429, Overloaded, "busy"),
        (302, Unavailable, "redirects"),
        (500, Unavailable, "failed"),
        (503, Unavailable, "failed"),
    ],
)
async def test_a_refusal_names_the_host_and_the_reason_and_never_the_key(
    remote: Remote, status: int, error: type[LlamasteadError], word: str
) -> None:
    remote.server.status = status
    remote.server.error = {"error": {"message": f"too long for {KEY}"}}
    remote.server.headers = {"Location": f"{remote.server.base_url}/elsewhere", "Retry-After": "7"}
    with pytest.raises(error, match=word) as refused:
        await remote.events()
    assert remote.server.host in refused.value.message
    assert KEY not in refused.value.message
    assert len(remote.server.asked) == 1
    if status == 429:
        assert refused.value.retry_after == 7


async def test_a_host_that_is_down_is_named(remote: Remote) -> None:
    model = RemoteModel("gpt", "http://127.0.0.1:9/v1", "127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9.* can't be reached"):
        await remote.events(model=model)


@pytest.mark.parametrize(
    "chunks",
    [
        [{"error": {"message": "out of memory"}}],
        ["no json"],
        [[1]],
        [{"choices": [5]}],
        [{"usage": {}}],
        [{"usage": {"prompt_tokens": -1, "completion_tokens": 2}}],
        ['{"usage": {"prompt_tokens": Infinity, "completion_tokens": 2}}'],
        ["[" * 100_000],
        [],
    ],
    ids=lambda chunks: str(chunks)[:60],
)
async def test_what_breaks_in_the_middle_is_a_failure(remote: Remote, chunks: list[Any]) -> None:
    remote.server.chunks = [said("a"), *chunks]
    remote.server.cut = True
    with pytest.raises(EngineFailed, match=str(remote.server.port)):
        await remote.events()


async def test_leaving_closes_the_connection(remote: Remote) -> None:
    remote.server.chunks = [said("word ")] * 10_000
    remote.server.pause = 0.001
    model = RemoteModel("gpt", remote.server.base_url, remote.server.host)
    async with (
        remote.engines.lease(model) as engine,
        aclosing(engine.generate(GenerationRequest(messages=ASK))) as events,
    ):
        assert [await anext(events) for _ in range(2)][-1] == Delta("word ")
    async with asyncio.timeout(10):
        await remote.server.left.wait()
    assert "authorization" not in remote.server.asked[0][1]


async def test_sizes_are_estimated_and_usage_where_it_is_not_told(remote: Remote) -> None:
    remote.server.chunks = [chunk for chunk in remote.server.chunks if chunk is not USAGE]
    end = (await remote.events())[-1]
    assert isinstance(end, Finished)
    assert end.usage.completion_tokens > 0
    async with remote.engines.lease(RemoteModel("gpt", remote.server.base_url, remote.server.host)) as engine:
        count = await engine.count_tokens([*ASK, *ASK])
    assert count.total == sum(count.per_message)
