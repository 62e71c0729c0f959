"""The `openai` SDK, unmodified, against the root's base_url."""

from __future__ import annotations

import openai
import pytest

from tests.running_server import RunningServer

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_chats_are_decoded_whole_and_streamed(client: openai.OpenAI) -> None:
    arguments = {"model": "llama3.3", "messages": HELLO, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.model == "llama3.3"


def test_completions_are_decoded_whole_and_streamed(client: openai.OpenAI) -> None:
    arguments = {"model": "llama3.3", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 16}
    whole = client.completions.create(**arguments)
    parts = list(client.completions.create(**arguments, stream=True))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert whole.usage is not None


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    for model in client.models.list():
        assert client.models.retrieve(model.id).id == model.id


def test_embeddings_come_as_base64_unasked_and_are_decoded(client: openai.OpenAI) -> None:
    # The SDK asks for base64 and decodes it when nothing else is said.
    unsaid = client.embeddings.create(model="all-MiniLM-L6-v2", input=["A llama.", "A farm."])
    floats = client.embeddings.create(model="all-MiniLM-L6-v2", input=["A llama.", "A farm."], encoding_format="float")
    assert [len(entry.embedding) for entry in unsaid.data] == [384, 384]
    assert unsaid.data[1].embedding == pytest.approx(floats.data[1].embedding, abs=1e-6)


def test_errors_are_the_sdks_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="absent"):
        client.completions.create(model="absent", prompt="x")
    with pytest.raises(openai.NotFoundError, match="all-MiniLM-L6-v2"):
        client.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(openai.BadRequestError, match="echo"):
        client.completions.create(model="llama3.3", prompt="x", echo=True)
