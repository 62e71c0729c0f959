"""Prompts through the real gateway, over the scripted engine: what needs exact timing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from llamastead.v1 import prompt_pb2, prompt_pb2_grpc
from llamastead_server.domain.chat.prompt_turns import PromptTurns
from llamastead_server.services.prompts import PromptServicer
from tests.chat_stack import ChatStack, chat_stack
from tests.gateway import Running, running

LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[ChatStack]:
    async with chat_stack(tmp_path) as stack:
        yield stack


@pytest.fixture
async def gateway(stack: ChatStack) -> AsyncIterator[Running]:
    async with running([PromptServicer(PromptTurns(stack.turns, stack.settings))]) as gateway:
        yield gateway


async def at_rest(stack: ChatStack) -> None:
    async with asyncio.timeout(20):
        while stack.engine.active or stack.models.leases:
            await asyncio.sleep(0.01)


async def test_a_stream_arrives_piece_by_piece(stack: ChatStack, gateway: Running) -> None:
    stack.engine.delay = 0.1
    async with gateway.http.stream("POST", "/api/stream", json={"prompt": "Hi"}, headers=LINES) as answer:
        lines = answer.aiter_lines()
        first = await anext(lines)
        # The rest is not there yet: it was not held back to be sent with it.
        assert stack.engine.active == 1
        pieces = [json.loads(first), *[json.loads(line) async for line in lines]]
    assert [piece["chunk"] for piece in pieces] == ["Hello", ", ", "world", ".", ""]
    assert [piece["index"] for piece in pieces] == [0, 1, 2, 3, 4]
    summary = pieces[-1]["summary"]
    assert (summary["response"], summary["tokens_used"], summary["finish_reason"]) == ("Hello, world.", 6, "stop")


@pytest.mark.parametrize("path", ["/api/stream", "/api/process", "/api/process_prompt"])
async def test_a_client_that_leaves_frees_the_engine(stack: ChatStack, gateway: Running, path: str) -> None:
    stack.engine.pieces = ["x"] * 10_000
    stack.engine.delay = 0.01
    body: dict[str, Any] = {"prompt": "Hi", "max_tokens": 10_000, "stream": path != "/api/process_prompt"}
    if path == "/api/process_prompt":
        with pytest.raises(httpx.ReadTimeout):
            await gateway.http.post(path, json={**body, "stream": False}, timeout=0.5)
    else:
        async with gateway.http.stream("POST", path, json=body) as answer:
            await anext(answer.aiter_lines())
    await at_rest(stack)
    assert stack.engine.closed == 1


@pytest.mark.parametrize("headers", [LINES, {}], ids=["lines", "events"])
async def test_a_failure_after_the_first_piece_is_the_last_one(
    stack: ChatStack, gateway: Running, headers: dict[str, str]
) -> None:
    stack.engine.fail_at = 2
    answer = await gateway.http.post("/api/stream", json={"prompt": "Hi"}, headers=headers)
    assert answer.status_code == 200
    *pieces, last = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert [piece["chunk"] for piece in pieces] == ["Hello", ", "]
    assert set(last["error"]) == {"code", "message", "details"}
    assert last["error"]["code"] == "engine_failed"
    assert "[DONE]" not in answer.text


async def test_a_deadline_in_the_midst_is_the_last_piece_and_before_the_first_it_is_408(
    stack: ChatStack, gateway: Running
) -> None:
    stack.engine.gate = asyncio.Event()
    early = await gateway.http.post("/api/stream", json={"prompt": "Hi", "timeout": 0.05})
    assert (early.status_code, early.json()["error"]["code"]) == (408, "request_timeout")
    await at_rest(stack)
    stack.engine.gate = None
    stack.engine.pieces = ["x"] * 10_000
    stack.engine.delay = 0.01
    body = {"prompt": "Hi", "max_tokens": 10_000, "timeout": 0.5}
    late = await gateway.http.post("/api/stream", json=body, headers=LINES)
    assert late.status_code == 200
    assert json.loads(late.text.splitlines()[-1])["error"]["code"] == "request_timeout"
    await at_rest(stack)


async def test_a_defect_is_500_in_the_envelope_and_leaks_nothing(
    stack: ChatStack, gateway: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str | None) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(stack.models, "lease", broken)
    for path in ("/api/process_prompt", "/api/process", "/api/stream"):
        answer = await gateway.http.post(path, json={"prompt": "Hi"}, headers={"X-Request-ID": "find-me"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal"
        assert "find-me" in answer.json()["error"]["message"]
        assert "secret" not in answer.text
    assert any(record.exc_info for record in caplog.records)


async def test_an_engine_that_died_is_503_with_retry_after(stack: ChatStack, gateway: Running) -> None:
    stack.engine.fail_at = 0
    answer = await gateway.http.post("/api/process_prompt", json={"prompt": "Hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
    assert int(answer.headers["retry-after"]) >= 1


async def test_typed_calls_answer_the_same_on_both_ports(stack: ChatStack, gateway: Running) -> None:
    request = prompt_pb2.ProcessPromptRequest(prompt="Hi")
    for address in gateway.addresses:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = prompt_pb2_grpc.PromptServiceStub(channel)
            whole = await stub.ProcessPrompt(request)
            pieces = [piece async for piece in stub.StreamPrompt(request)]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ProcessPrompt(prompt_pb2.ProcessPromptRequest(prompt=" "))
        assert (whole.response, whole.model_used, whole.tokens_used) == ("Hello, world.", "llama3.3", 6)
        assert "".join(piece.chunk for piece in pieces) == pieces[-1].summary.response == "Hello, world."
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_documented_defaults_reach_the_engine(stack: ChatStack, gateway: Running) -> None:
    await gateway.http.post("/api/process_prompt", json={"prompt": "Hi"})
    given = stack.engine.requests[-1]
    assert given.max_tokens == 100
    assert (given.sampling.temperature, given.sampling.top_p) == (0.7, 0.9)
    assert not given.sampling.frequency_penalty
    assert not given.sampling.presence_penalty
    stack.settings.configure_model("fake", {"temperature": 0.1, "max_tokens": 3, "presence_penalty": 1})
    await gateway.http.post("/api/process_prompt", json={"prompt": "Hi"})
    given = stack.engine.requests[-1]
    assert (given.max_tokens, given.sampling.temperature, given.sampling.presence_penalty) == (3, 0.1, 1)
    await gateway.http.post("/api/process_prompt", json={"prompt": "Hi", "temperature": 1, "max_tokens": 4})
    given = stack.engine.requests[-1]
    assert (given.max_tokens, given.sampling.temperature) == (4, 1)
