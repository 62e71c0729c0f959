from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from llamastead.v1 import chat_pb2, chat_pb2_grpc
from llamastead_server.services.chat import ChatServicer
from llamastead_server.services.interceptors import CallInterceptor
from tests.chat_stack import REF, ChatStack, chat_stack, passage

HELLO = [{"role": "user", "content": "Hello!"}]


class Served:
    """A stub of the servicer behind a real gRPC server."""

    def __init__(self, stack: ChatStack, stub: chat_pb2_grpc.ChatServiceAsyncStub) -> None:
        self.stack = stack
        self.stub = stub

    async def http(self, *metadata: tuple[str, str], **fields: Any) -> tuple[str, str, dict[str, str]]:
        """Content type, body and headers of the REST answer."""
        call = self.stub.CreateChatCompletionHttp(request(**fields), metadata=metadata)
        bodies = [body async for body in call]
        headers = {str(key): str(value) for key, value in await call.initial_metadata()}
        return bodies[0].content_type, b"".join(body.data for body in bodies).decode(), headers


def request(**fields: Any) -> chat_pb2.CreateChatCompletionRequest:
    body = {"namespace": REF.namespace, "project": REF.name, "messages": HELLO, **fields}
    return ParseDict(body, chat_pb2.CreateChatCompletionRequest())


def events(text: str) -> list[Any]:
    data = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in data]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with chat_stack(tmp_path) as stack:
        server = grpc.aio.server(interceptors=[CallInterceptor([])])
        servicer = ChatServicer(stack.turns, stack.sessions, stack.projects)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await stack.project(rag={"databases": [{"name": "main_db"}]})
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(stack, chat_pb2_grpc.ChatServiceStub(channel))
        await server.stop(None)


async def test_a_json_answer_has_openais_shape(served: Served) -> None:
    kind, text, headers = await served.http()
    answer = json.loads(text)
    assert kind == "application/json"
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"], type(answer["created"])) == ("chat.completion", "fake", int)
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world."},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 4
    assert "sources" not in answer
    assert headers["x-session-id"]
    assert "x-llamastead-trimmed" not in headers


async def test_a_stream_begins_with_the_role_and_ends_with_the_reason_usage_and_done(served: Served) -> None:
    kind, text, headers = await served.http(stream=True, stream_options={"include_usage": True})
    assert kind == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    first, *middle, last, usage, done = events(text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in middle] == ["Hello", ", ", "world", "."]
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *middle))
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in (first, *middle, last, usage)}) == 1


async def test_sources_come_first_in_a_stream_and_beside_the_choices_otherwise(served: Served) -> None:
    served.stack.shelf.sources = [passage(), passage("Second.", 0.5, None)]
    expected = {
        "content": "It closes at nine.",
        "source": "handbook.pdf",
        "score": 0.8,
        "metadata": {"author": "Ann", "page": 3},
        "chunk_id": "c1",
        "document_id": "ab" * 32,
    }
    _, text, _ = await served.http(stream=True, include_sources=True, sources_limit=1)
    assert events(text)[0] == {"type": "sources", "sources": [expected]}
    _, text, _ = await served.http(include_sources=True)
    assert [source["source"] for source in json.loads(text)["sources"]] == ["handbook.pdf"] * 2
    assert json.loads(text)["sources"][0] == expected


async def test_logprobs_have_openais_shape(served: Served) -> None:
    _, text, _ = await served.http(logprobs=True, top_logprobs=1)
    first = json.loads(text)["choices"][0]["logprobs"]["content"][0]
    alternative = {"token": "Hello", "logprob": -0.5, "bytes": list(b"Hello")}
    assert first == {**alternative, "top_logprobs": [alternative]}


async def test_a_late_failure_is_one_error_event_without_done(served: Served) -> None:
    served.stack.engine.pieces = list("abcdefgh")
    served.stack.engine.fail_at = 5
    _, text, _ = await served.http(("x-session-id", "s"), stream=True)
    *chunks, error = events(text)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:]] == list("abcde")
    assert error["error"]["code"] == "engine_failed"
    assert await served.stack.history() == []


async def test_headers_choose_the_session(served: Served) -> None:
    _, _, headers = await served.http(("x-session-id", "s"))
    assert headers["x-session-id"] == "s"
    _, _, headers = await served.http(("x-session-id", "s"), ("x-no-session", "1"))
    assert "x-session-id" not in headers
    assert len(await served.stack.history()) == 2


async def test_trimming_is_said_in_a_header(served: Served) -> None:
    served.stack.engine.context_length = 100
    for _ in range(4):
        await served.http(("x-session-id", "s"), messages=[{"role": "user", "content": "q " * 20}])
    _, _, headers = await served.http(("x-session-id", "s"), max_tokens=20)
    assert headers["x-llamastead-trimmed"] == "turns=1"


@pytest.mark.parametrize("typed", [False, True])
async def test_a_cancelled_call_frees_the_engine_and_keeps_nothing(served: Served, typed: bool) -> None:
    engine = served.stack.engine
    engine.delay = 0.01
    engine.pieces = ["word "] * 2000
    asked = request(stream=True, session_id="s")
    method = served.stub.StreamChatCompletion if typed else served.stub.CreateChatCompletionHttp
    call = method(asked)
    await call.read()
    await call.read()
    assert engine.active == 1
    call.cancel()
    async with asyncio.timeout(5):
        while engine.active or served.stack.models.leases or served.stack.sessions._seats:
            await asyncio.sleep(0.01)
    assert await served.stack.history() == []


async def test_the_typed_calls_answer_the_same(served: Served) -> None:
    served.stack.shelf.sources = [passage()]
    whole = await served.stub.CreateChatCompletion(request(session_id="s", include_sources=True))
    assert whole.choices[0].message.content.string_value == "Hello, world."
    assert whole.choices[0].finish_reason.string_value == "stop"
    assert (whole.session_id, whole.sources[0].source) == ("s", "handbook.pdf")
    call = served.stub.StreamChatCompletion(
        request(no_session=True, include_sources=True, stream_options={"include_usage": True})
    )
    first, role, *middle, last = [chunk async for chunk in call]
    assert (len(first.choices), first.sources[0].score) == (0, 0.8)
    assert role.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == "Hello, world."
    assert (last.choices[0].finish_reason.string_value, last.usage.completion_tokens) == ("stop", 4)
    assert not last.HasField("session_id")


async def test_history_and_deletes_answer_as_documented(served: Served) -> None:
    for session in ("abc-123", "other"):
        await served.http(("x-session-id", session))
    names = {"namespace": REF.namespace, "project": REF.name}
    history = await served.stub.GetChatHistory(chat_pb2.GetChatHistoryRequest(**names, session_id="abc-123"))
    assert [(message.role, message.content.string_value) for message in history.messages] == [
        ("user", "Hello!"),
        ("assistant", "Hello, world."),
    ]
    unknown = await served.stub.GetChatHistory(chat_pb2.GetChatHistoryRequest(**names, session_id="unknown"))
    assert not unknown.messages
    deleted = await served.stub.DeleteChatSession(chat_pb2.DeleteChatSessionRequest(**names, session_id="abc-123"))
    assert deleted.message == "Session abc-123 deleted"
    gone = await served.stub.DeleteAllChatSessions(chat_pb2.DeleteAllChatSessionsRequest(**names))
    assert (gone.message, gone.count) == ("Deleted 1 session(s)", 1)
