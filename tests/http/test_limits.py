"""Limits as callers meet them: statuses, headers and metadata, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from llamastead.v1 import chat_pb2, chat_pb2_grpc
from llamastead_server.adapters.rate_windows import MemoryWindows, RedisWindows
from llamastead_server.adapters.redis_link import RedisLink
from llamastead_server.adapters.stream_leases import RedisStreams
from llamastead_server.domain.access.limits import LimitRules, Limits
from llamastead_server.domain.access.tokens import Tokens
from llamastead_server.services.auth import BearerAuth
from llamastead_server.services.limit_layer import LimitLayer
from tests.fake_clock import FakeClock
from tests.gateway import NoTokens, Running, ScriptedChat, running

HISTORY = "/v1/projects/a/b/chat/sessions/c/history"
CHAT = "/v1/projects/a/b/chat/completions"
PROCESS = "/v1/projects/a/b/datasets/c/process"
ANN, BEN = {"authorization": "Bearer ann"}, {"authorization": "Bearer ben"}
REQUEST = chat_pb2.CreateChatCompletionRequest(namespace="a", project="b")


@dataclass
class Limited:
    """A server with limits, and the clock they run on."""

    running: Running
    clock: FakeClock
    limits: Limits

    @property
    def http(self) -> httpx.AsyncClient:
        return self.running.http


async def limited(chat: ScriptedChat, *tokens: str) -> AsyncIterator[Limited]:
    clock = FakeClock()
    limits = Limits(MemoryWindows(clock), clock)
    layers = [BearerAuth(Tokens(NoTokens(), clock, fixed=tokens)), LimitLayer(limits)]
    async with running([chat], layers=layers) as started:
        yield Limited(started, clock, limits)


@pytest.fixture
async def closed(chat: ScriptedChat) -> AsyncIterator[Limited]:
    async for one in limited(chat, "ann", "ben"):
        yield one


@pytest.fixture
async def opened(chat: ScriptedChat) -> AsyncIterator[Limited]:
    async for one in limited(chat):
        yield one


def left(answer: httpx.Response) -> tuple[int, int, int]:
    names = ("limit", "remaining", "reset")
    limit, remaining, reset = (int(answer.headers[f"x-ratelimit-{name}"]) for name in names)
    return limit, remaining, reset


async def test_every_answer_says_what_is_left_and_the_sixty_first_is_429(closed: Limited) -> None:
    reset = int(closed.clock.now) + 60
    for number in range(60):
        # A failed call counts, and says so too.
        path = HISTORY if number % 2 else "/api/models"
        answer = await closed.http.get(path, headers=ANN)
        assert answer.status_code == (200 if number % 2 else 501)
        assert left(answer) == (60, 59 - number, reset)
    closed.clock.now += 20
    for path in (HISTORY, "/api/models"):
        answer = await closed.http.get(path, headers=ANN)
        assert answer.status_code == 429
        assert left(answer) == (60, 0, reset)
        assert answer.headers["retry-after"] == "40"
        assert answer.json()["error"]["code"] == "rate_limited"
    assert (await closed.http.get(HISTORY, headers=BEN)).status_code == 200
    closed.clock.now += 41
    assert (await closed.http.get(HISTORY, headers=ANN)).status_code == 200


@pytest.mark.parametrize("port", [0, 1], ids=["gateway", "bare"])
async def test_grpc_callers_share_the_budget_and_learn_when_to_come_back(closed: Limited, port: int) -> None:
    closed.limits.rules = LimitRules(requests=2)
    assert (await closed.http.get(HISTORY, headers=ANN)).status_code == 200
    async with grpc.aio.insecure_channel(closed.running.addresses[port]) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        call = stub.CreateChatCompletion(REQUEST, metadata=tuple(ANN.items()), timeout=20)
        await call
        assert dict(await call.initial_metadata())["x-ratelimit-remaining"] == "0"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.CreateChatCompletion(REQUEST, metadata=tuple(ANN.items()), timeout=20)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(raised.value)
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.seconds == 60
    trailers = dict(raised.value.trailing_metadata() or ())
    assert (trailers["x-ratelimit-limit"], trailers["x-ratelimit-remaining"], trailers["retry-after"]) == (
        "2",
        "0",
        "60",
    )


async def test_batch_operations_have_a_limit_of_their_own(closed: Limited) -> None:
    for number in range(5):
        answer = await closed.http.post(PROCESS, headers=ANN)
        assert (answer.status_code, left(answer)[:2]) == (501, (5, 4 - number))
    answer = await closed.http.post(PROCESS, headers=ANN)
    assert (answer.status_code, left(answer)[:2]) == (429, (5, 0))
    assert (await closed.http.get(HISTORY, headers=ANN)).status_code == 200


async def test_the_eleventh_stream_is_429_until_one_is_left(closed: Limited, chat: ScriptedChat) -> None:
    chat.events, chat.pause = 100_000, 0.05
    streams = []
    for _ in range(10):
        request = closed.http.build_request("POST", CHAT, json={"stream": True}, headers=ANN)
        streams.append(await closed.http.send(request, stream=True))
    assert {stream.status_code for stream in streams} == {200}
    refused = await closed.http.post(CHAT, json={"stream": True}, headers=ANN)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "10 streams" in refused.json()["detail"]
    # What is no stream, and others' streams, are not refused.
    assert (await closed.http.post(CHAT, json={}, headers=ANN)).status_code == 200
    async with closed.http.stream("POST", CHAT, json={"stream": True}, headers=BEN) as other:
        assert other.status_code == 200
    await streams.pop().aclose()
    async with asyncio.timeout(10):
        while True:
            request = closed.http.build_request("POST", CHAT, json={"stream": True}, headers=ANN)
            again = await closed.http.send(request, stream=True)
            streams.append(again)
            if again.status_code == 200:
                break
            await asyncio.sleep(0.05)
    for stream in streams:
        await stream.aclose()


async def test_grpc_streams_count_and_end_when_they_are_cancelled(closed: Limited, chat: ScriptedChat) -> None:
    closed.limits.rules = LimitRules(streams=1)
    chat.events, chat.pause = 100_000, 0.05
    async with grpc.aio.insecure_channel(closed.running.addresses[1]) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)

        def stream() -> grpc.aio.UnaryStreamCall[object, object]:
            return stub.StreamChatCompletion(REQUEST, metadata=tuple(ANN.items()), timeout=30)

        first = stream()
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream().read()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        async with asyncio.timeout(10):
            await chat.ended.wait()
        second = stream()
        await second.read()
        second.cancel()


async def test_a_wrong_token_uses_up_nobodys_budget(closed: Limited) -> None:
    for _ in range(70):
        answer = await closed.http.get(HISTORY, headers={"authorization": "Bearer wrong"})
        assert answer.status_code == 401
        assert "x-ratelimit-limit" not in answer.headers
    assert left(await closed.http.get(HISTORY, headers=ANN))[1] == 59


@pytest.mark.parametrize("path", ["/health", "/health/liveness", "/", "/openapi.json", "/api/health_check", "/metrics"])
async def test_health_and_metrics_are_never_limited(closed: Limited, path: str) -> None:
    closed.limits.rules = LimitRules(requests=1)
    for _ in range(3):
        answer = await closed.http.get(path, headers=ANN)
        assert answer.status_code == 501
        assert "x-ratelimit-limit" not in answer.headers


async def test_an_open_server_limits_nobody_until_it_is_told_to(opened: Limited) -> None:
    for _ in range(70):
        answer = await opened.http.get(HISTORY)
        assert answer.status_code == 200
        assert "x-ratelimit-limit" not in answer.headers
    opened.limits.rules = LimitRules(requests=2)
    assert [(await opened.http.get(HISTORY)).status_code for _ in range(3)] == [200, 200, 429]


FORGED = [
    {"x-forwarded-for": "203.0.113.9"},
    {"x-forwarded-for": "203.0.113.9, 203.0.113.10"},
    {"x-envoy-external-address": "203.0.113.11"},
    {"x-real-ip": "203.0.113.12"},
    {"forwarded": "for=203.0.113.13"},
    {"x-client-address": "203.0.113.14"},
]


async def test_no_header_of_a_client_changes_its_address(opened: Limited) -> None:
    opened.limits.rules = LimitRules(requests=len(FORGED))
    for headers in FORGED:
        assert (await opened.http.get(HISTORY, headers=headers)).status_code == 200
    for headers in ({}, *FORGED):
        assert (await opened.http.get(HISTORY, headers=headers)).status_code == 429
    async with grpc.aio.insecure_channel(opened.running.addresses[1]) as channel:
        metadata = (("x-client-address", "203.0.113.9"), ("x-envoy-original-path", "/x"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await chat_pb2_grpc.ChatServiceStub(channel).CreateChatCompletion(REQUEST, metadata=metadata, timeout=20)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_pages_may_read_the_headers(closed: Limited) -> None:
    origin = {"origin": "http://localhost:5173"}
    exposed = (await closed.http.get(HISTORY, headers=ANN | origin)).headers["access-control-expose-headers"]
    assert {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"} <= {
        name.strip() for name in exposed.split(",")
    }


async def test_two_servers_on_one_redis_share_the_limits(chat: ScriptedChat, redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(2):
            link = RedisLink(redis_url, time.time)
            stack.push_async_callback(link.close)
            limits = Limits(RedisWindows(link, time.time), time.time, streams=RedisStreams(link, time.time))
            layers = [BearerAuth(Tokens(NoTokens(), time.time, fixed=["ann"])), LimitLayer(limits)]
            servers.append((await stack.enter_async_context(running([chat], layers=layers)), limits))
        clients = [started.http for started, _ in servers]
        assert [left(await clients[n % 2].get(HISTORY, headers=ANN))[1] for n in range(4)] == [59, 58, 57, 56]
        for _, limits in servers:
            limits.rules = LimitRules(requests=0, streams=2)
        chat.events, chat.pause = 100_000, 0.05
        streams = []
        for http in clients:
            request = http.build_request("POST", CHAT, json={"stream": True}, headers=ANN)
            streams.append(await http.send(request, stream=True))
        for http in clients:
            assert (await http.post(CHAT, json={"stream": True}, headers=ANN)).status_code == 429
        chat.events = 3
        await streams[0].aclose()
        async with asyncio.timeout(10):
            while (await clients[1].post(CHAT, json={"stream": True}, headers=ANN)).status_code != 200:
                await asyncio.sleep(0.05)
        # One that has ended made room before its end was told.
        for number in range(4):
            assert (await clients[number % 2].post(CHAT, json={"stream": True}, headers=ANN)).status_code == 200
        await streams[1].aclose()
