"""The `openai` SDK, unmodified, against a project's base_url."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from llamastead_server.domain import errors
from tests.gateway import ScriptedChat, running
from tests.running_server import RunningServer


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1/projects/default/quickstart", api_key="unused", max_retries=0)


HELLO = [{"role": "user", "content": "Hello!"}]


def test_a_completion_is_decoded(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model="", messages=HELLO, temperature=0, max_tokens=16)
    assert completion.object == "chat.completion"
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason in ("stop", "length")
    assert completion.usage is not None
    assert completion.usage.total_tokens > 0


def test_a_stream_is_decoded_and_equals_the_whole(client: openai.OpenAI) -> None:
    arguments = {"model": "", "messages": HELLO, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**arguments).choices[0].message.content
    stream = client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage is not None


def test_retrieval_fields_travel_in_extra_body_and_sources_come_back(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="",
        messages=[{"role": "user", "content": "When does the barn gate close?"}],
        temperature=0,
        max_tokens=40,
        extra_body={"rag_enabled": True, "include_sources": True},
    )
    assert completion.model_extra is not None
    assert completion.model_extra["sources"]


def test_errors_are_the_sdks_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="absent-model"):
        client.chat.completions.create(model="absent-model", messages=HELLO)
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        client.chat.completions.create(model="", messages=HELLO, temperature=9)
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.chat.completions.create(model="", messages=[{"role": "user", "content": "word " * 20_000}])


def test_closing_a_stream_early_is_clean_and_the_next_call_works(client: openai.OpenAI) -> None:
    for _ in range(6):
        stream = client.chat.completions.create(
            model="", messages=HELLO, stream=True, temperature=1.5, extra_body={"logit_bias": {}}
        )
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model="", messages=HELLO, max_tokens=4).choices[0].message.content


def test_the_raw_stream_carries_session_and_lines(client: openai.OpenAI) -> None:
    arguments = {"model": "", "messages": HELLO, "max_tokens": 8, "stream": True}
    with client.chat.completions.with_streaming_response.create(**arguments) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-session-id"]
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])


def test_models_are_listed_on_the_projects_base_url(client: openai.OpenAI) -> None:
    listed = client.models.list()
    assert listed.object == "list"
    model = listed.data[0]
    assert (model.object, model.id) == ("model", "default")
    assert client.chat.completions.create(model=model.id, messages=HELLO, max_tokens=4).model


@contextlib.asynccontextmanager
async def scripted(chat: ScriptedChat, max_retries: int = 0) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK before the real gateway, and behind that a chat that does what the test says."""
    async with running([chat]) as gateway:
        url = f"http://127.0.0.1:{gateway.port}/v1/projects/a/b"
        async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=max_retries) as client:
            yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_each_status_is_the_class_the_sdk_has_for_it(stream: bool) -> None:
    chat = ScriptedChat()
    expected: list[tuple[errors.LlamasteadError, type[openai.APIStatusError]]] = [
        (errors.InvalidRequest("Because."), openai.BadRequestError),
        (errors.Unauthenticated("Because."), openai.AuthenticationError),
        (errors.PermissionDenied("Because."), openai.PermissionDeniedError),
        (errors.ModelNotFound("Because."), openai.NotFoundError),
        (errors.Conflict("Because."), openai.ConflictError),
        (errors.ValidationFailed("Because."), openai.UnprocessableEntityError),
        (errors.RateLimited("Because.", retry_after=3), openai.RateLimitError),
        (errors.Overloaded("Because.", retry_after=3), openai.InternalServerError),
        (errors.Internal("Because."), openai.InternalServerError),
    ]
    async with scripted(chat) as client:
        for error, kind in expected:
            chat.error = error
            with pytest.raises(kind, match="Because") as raised:
                await client.chat.completions.create(model="", messages=HELLO, stream=stream)
            assert raised.value.type
            assert raised.value.code
            assert raised.value.response.headers.get("retry-after") == ("3" if error.retry_after else None)
            assert raised.value.request_id


@pytest.mark.parametrize("error", [errors.RateLimited("No.", retry_after=1), errors.Overloaded("No.", retry_after=1)])
async def test_what_may_be_retried_is_and_succeeds(error: errors.LlamasteadError) -> None:
    class Busy(ScriptedChat):
        async def _receive(self, request: Any, context: Any) -> None:
            self.error = error if not self.requests else None
            await super()._receive(request, context)

    chat = Busy()
    async with scripted(chat, max_retries=1) as client:
        stream = await client.chat.completions.create(model="", messages=HELLO, stream=True)
        assert len([chunk async for chunk in stream]) == 3
    assert len(chat.requests) == 2


async def test_an_error_within_a_stream_is_raised() -> None:
    chat = ScriptedChat()
    chat.fails_after, chat.pause = 2, 0.02
    async with scripted(chat) as client:
        stream = await client.chat.completions.create(model="", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match=r"The engine died\."):
            async for _ in stream:
                pass


async def test_closing_a_stream_ends_the_work() -> None:
    chat = ScriptedChat()
    chat.events, chat.pause = 100_000, 0.01
    async with scripted(chat) as client:
        stream = await client.chat.completions.create(model="", messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(5):
            await chat.ended.wait()
