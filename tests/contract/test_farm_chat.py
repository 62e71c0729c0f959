"""LlamaFarm's document, section "Chat API"."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.contract.shape import assert_shape

CHAT = "/v1/projects/default/quickstart/chat/completions"
SESSIONS = "/v1/projects/default/quickstart/chat/sessions"
HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16, "temperature": 0}
COMPLETION = {
    "id": "chatcmpl-123",
    "object": "chat.completion",
    "created": 1677652288,
    "model": "llama3.2:3b",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "LlamaFarm is"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 100, "total_tokens": 120},
}
CHUNK = {
    "id": "chatcmpl-123",
    "object": "chat.completion.chunk",
    "created": 1677652288,
    "model": "llama3.2:3b",
    "choices": [{"index": 0, "delta": {}, "finish_reason": None}],
}


def events(answer: httpx.Response) -> list[Any]:
    """The data of each server-sent event; `[DONE]` stays a string."""
    blocks = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), blocks
    return [data if (data := block.removeprefix("data: ")) == "[DONE]" else json.loads(data) for block in blocks]


def test_a_chat_message_answers_an_openai_completion(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=HELLO)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert_shape(COMPLETION, answer.json())
    usage = answer.json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer.headers["x-session-id"]
    assert answer.headers["x-request-id"]


def test_the_documented_request_with_every_field_is_answered(http: httpx.Client) -> None:
    body = {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "When does the gate close?"},
        ],
        "stream": False,
        "temperature": 0.7,
        "max_tokens": 1000,
        "rag_enabled": True,
        "database": "main_db",
        "rag_top_k": 5,
        "rag_score_threshold": 0.7,
    }
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    assert_shape(COMPLETION, answer.json())


def test_streaming_answers_chunks_and_done(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={**HELLO, "stream": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer)
    assert done == "[DONE]"
    for chunk in chunks:
        assert_shape(CHUNK, chunk)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[0]["choices"][0]["finish_reason"] is None
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    streamed = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    whole = http.post(CHAT, json=HELLO).json()["choices"][0]["message"]["content"]
    assert streamed == whole


def test_usage_is_streamed_when_asked_for(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={**HELLO, "stream": True, "stream_options": {"include_usage": True}})
    *_, last, done = events(answer)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert_shape(COMPLETION["usage"], last["usage"])


def test_a_session_remembers_and_its_history_is_exact(http: httpx.Client) -> None:
    first = http.post(CHAT, json=HELLO)
    session = first.headers["x-session-id"]
    second = http.post(CHAT, json=HELLO, headers={"X-Session-ID": session})
    assert second.headers["x-session-id"] == session
    history = http.get(f"{SESSIONS}/{session}/history")
    assert history.status_code == 200
    said = [first.json()["choices"][0]["message"]["content"], second.json()["choices"][0]["message"]["content"]]
    plain = [(message["role"], message["content"]) for message in history.json()["messages"]]
    assert plain == [("user", "Hello!"), ("assistant", said[0]), ("user", "Hello!"), ("assistant", said[1])]
    assert second.json()["usage"]["prompt_tokens"] > first.json()["usage"]["prompt_tokens"]


def test_stateless_mode_keeps_nothing(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=HELLO, headers={"X-No-Session": "true"})
    assert answer.status_code == 200
    assert "x-session-id" not in answer.headers


def test_deleting_a_session_answers_a_message_and_forgets_it(http: httpx.Client) -> None:
    http.post(CHAT, json=HELLO, headers={"X-Session-ID": "abc-123"})
    answer = http.delete(f"{SESSIONS}/abc-123")
    assert (answer.status_code, answer.json()) == (200, {"message": "Session abc-123 deleted"})
    assert not http.get(f"{SESSIONS}/abc-123/history").json().get("messages")


def test_deleting_all_sessions_answers_their_number(http: httpx.Client) -> None:
    http.delete(SESSIONS)
    for name in ("one", "two"):
        http.post(CHAT, json=HELLO, headers={"X-Session-ID": name})
    answer = http.delete(SESSIONS)
    assert (answer.status_code, answer.json()) == (200, {"message": "Deleted 2 session(s)", "count": 2})


@pytest.mark.parametrize("session", ["..", "../../etc", "a/b", "a b", "x" * 200, "-x"])
def test_hostile_session_ids_are_refused(http: httpx.Client, session: str) -> None:
    answer = http.post(CHAT, json=HELLO, headers={"X-Session-ID": session})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"temperature": 3},
        {"temperature": -0.1},
        {"max_tokens": 0},
        {"top_p": 0},
        {"top_p": 1.5},
        {"n": 2},
        {"presence_penalty": 5},
        {"frequency_penalty": -5},
        {"top_logprobs": 50, "logprobs": True},
        {"stop": [""]},
        {"rag_top_k": 0},
        {"rag_score_threshold": 2},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_fields_are_refused_with_a_status_before_any_work(
    http: httpx.Client, wrong: dict[str, Any], stream: bool
) -> None:
    answer = http.post(CHAT, json={**HELLO, **wrong, "stream": stream})
    assert answer.status_code in (400, 422), answer.text
    assert_shape({"detail": "…", "error": {"message": "…", "type": "…"}}, answer.json())


def test_an_unconfigured_model_answers_404(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={**HELLO, "model": "absent-model"})
    assert answer.status_code == 404
    assert "absent-model" in answer.json()["detail"]


def test_a_prompt_longer_than_the_window_answers_400_with_both_numbers(http: httpx.Client) -> None:
    long = {"role": "user", "content": "word " * 20_000}
    for stream in (False, True):
        answer = http.post(CHAT, json={**HELLO, "messages": [long], "stream": stream})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "2048" in answer.json()["detail"]


def test_content_parts_stop_seed_and_logprobs_are_effective(http: httpx.Client) -> None:
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]}
    plain = http.post(CHAT, json=HELLO).json()["choices"][0]["message"]["content"]
    assert http.post(CHAT, json={**HELLO, **parts}).json()["choices"][0]["message"]["content"] == plain
    middle = plain[len(plain) // 2 : len(plain) // 2 + 3]
    cut = http.post(CHAT, json={**HELLO, "stop": middle}).json()["choices"][0]
    assert cut["message"]["content"] == plain[: plain.index(middle)]
    assert cut["finish_reason"] == "stop"
    seeded = [
        http.post(CHAT, json={**HELLO, "temperature": 1.5, "seed": 7}).json()["choices"][0]["message"]["content"]
        for _ in range(2)
    ]
    assert seeded[0] == seeded[1]
    logprobs = http.post(CHAT, json={**HELLO, "logprobs": True, "top_logprobs": 2}).json()["choices"][0]["logprobs"]
    assert_shape({"content": [{"token": "x", "logprob": -0.1, "bytes": [1], "top_logprobs": [{}]}]}, logprobs)


def test_a_json_schema_shapes_the_answer(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}
    answer = http.post(CHAT, json={**HELLO, "max_tokens": 64, "response_format": form}).json()
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["ok"], bool)


def test_path_names_cannot_be_overridden(http: httpx.Client) -> None:
    assert http.post(CHAT, json={**HELLO, "project": "other"}).status_code == 400
    assert http.get("/v1/projects/default/quickstart?project=absent").json()["project"]["name"] == "quickstart"
