"""The `openai` SDK, unmodified, against a project's base_url."""

from __future__ import annotations

import openai
import pytest

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
