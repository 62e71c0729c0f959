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


def test_several_answers_have_an_index_each_and_the_session_remembers_the_first(http: httpx.Client) -> None:
    body = {**HELLO, "temperature": 2, "top_p": 1, "repeat_penalty": 2, "seed": 11, "n": 3}
    answer = http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    assert_shape(COMPLETION, answer.json())
    choices = answer.json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    history = http.get(f"{SESSIONS}/{answer.headers['x-session-id']}/history").json()["messages"]
    assert [message["content"] for message in history] == ["Hello!", texts[0]]


def test_several_answers_are_streamed_under_an_index_each_and_their_prompt_costs_once(http: httpx.Client) -> None:
    alone = http.post(CHAT, json=HELLO).json()
    body = {**HELLO, "n": 3, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, done = events(http.post(CHAT, json=body))
    assert done == "[DONE]"
    assert last["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert last["usage"]["completion_tokens"] == 3 * alone["usage"]["completion_tokens"]
    for index in range(3):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        text = "".join(choice["delta"].get("content") or "" for choice in mine)
        assert text == alone["choices"][0]["message"]["content"]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]


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
        {"n": 0},
        {"n": 9},
        {"presence_penalty": 5},
        {"frequency_penalty": -5},
        {"top_logprobs": 50, "logprobs": True},
        {"stop": [""]},
        {"rag_top_k": 0},
        {"rag_score_threshold": 2},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
        {"rag_queries": [" "]},
        {"rag_queries": ["x"] * 11},
        {"sources_limit": 51},
        {"n_ctx": 10},
        {"n_ctx": 1000000},
        {"seed": 1.5},
        {"tools": [{"type": "function", "function": {"name": "x"}}]},
        {"tool_choice": "required"},
        {"thinking_budget": 100},
        {"think": True},
        {"reasoning_effort": "high"},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy", "format": "mp3"}},
        {"prediction": {"type": "content", "content": "x"}},
        {"service_tier": "flex"},
        {"store": True},
        {"verbosity": "high"},
        {"web_search_options": {}},
        {"functions": [{"name": "x"}]},
        {"function_call": {"name": "x"}},
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


GATE = {"messages": [{"role": "user", "content": "When does the barn gate close?"}], "max_tokens": 8, "temperature": 0}


def sources(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    answer = http.post(CHAT, json={**GATE, "include_sources": True, **fields}, headers={"X-No-Session": "1"})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["sources"]
    return found


def test_every_retrieval_field_is_effective(http: httpx.Client) -> None:
    whole = sources(http)
    assert len(whole) > 1
    assert_shape([{"content": "x", "source": "x", "score": 0.5, "metadata": {}}], whole)
    assert [source["score"] for source in whole] == sorted((source["score"] for source in whole), reverse=True)
    assert sources(http, rag_enabled=False) == []
    assert sources(http, rag_top_k=1) == whole[:1]
    assert sources(http, sources_limit=1) == whole[:1]
    least = whole[1]["score"]
    assert all(source["score"] >= least for source in sources(http, rag_score_threshold=least))
    assert sources(http, rag_score_threshold=1) == []
    by_keyword = sources(http, rag_retrieval_strategy="keyword")
    assert by_keyword
    assert [source["score"] for source in by_keyword] != [source["score"] for source in whole]
    assert sources(http, database="main_db") == whole
    assert "sources" not in http.post(CHAT, json=GATE).json()


def test_several_queries_are_merged_each_passage_once_with_its_best_score(http: httpx.Client) -> None:
    queries = ["When does the barn gate close?", "Who feeds the llamas?"]
    single = [sources(http, rag_queries=[query]) for query in queries]
    best: dict[str, float] = {}
    for source in single[0] + single[1]:
        best[source["chunk_id"]] = max(source["score"], best.get(source["chunk_id"], 0))
    merged = sources(http, rag_queries=queries)
    assert len(merged) == max(map(len, single))
    assert {source["chunk_id"]: source["score"] for source in merged}.items() <= best.items()
    assert [source["score"] for source in merged] == sorted(best.values(), reverse=True)[: len(merged)]


def test_the_first_event_of_a_stream_holds_the_sources(http: httpx.Client) -> None:
    first, role, *_, done = events(http.post(CHAT, json={**GATE, "include_sources": True, "stream": True}))
    assert (first["type"], first["sources"], done) == ("sources", sources(http), "[DONE]")
    assert role["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"database": "absent_db"}, 404),
        ({"database": "absent_db", "rag_enabled": False}, 404),
        ({"rag_retrieval_strategy": "absent"}, 404),
    ],
    ids=str,
)
def test_what_retrieval_does_not_know_is_refused(http: httpx.Client, fields: dict[str, Any], status: int) -> None:
    answer = http.post(CHAT, json={**GATE, **fields})
    assert answer.status_code in (status, 400), answer.text
    assert next(iter(fields.values())) in answer.json()["detail"]


def test_values_without_a_use_here_are_taken(http: httpx.Client) -> None:
    labels = {
        "user": "me", "metadata": {"a": "b"}, "modalities": ["text"], "service_tier": "auto", "store": False,
        "safety_identifier": "me", "prompt_cache_key": "x", "parallel_tool_calls": True, "tools": [], "n": 1,
        "tool_choice": "none", "think": False, "audio": None, "functions": [],
    }  # fmt: skip
    assert http.post(CHAT, json={**HELLO, **labels}).status_code == 200


@pytest.mark.parametrize("seed", [0, -1, 2**32 - 1, 2**32, 2**53 + 2, 2**62, -(2**62)])
def test_any_whole_seed_makes_the_draw_repeatable(http: httpx.Client, seed: int) -> None:
    body = {**HELLO, "temperature": 2, "top_p": 1, "seed": seed, "max_tokens": 24}
    texts = {http.post(CHAT, json=body).json()["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) == 1


def test_a_smaller_window_is_effective(http: httpx.Client) -> None:
    body = {**HELLO, "max_tokens": 1000, "rag_enabled": False, "n_ctx": 128, "logit_bias": {"70": 100}}
    answer = http.post(CHAT, json=body).json()
    assert (answer["usage"]["total_tokens"], answer["choices"][0]["finish_reason"]) == (128, "length")


@pytest.mark.parametrize("value", ["true", "false", "0", "anything"])
def test_any_value_of_the_header_is_stateless(http: httpx.Client, value: str) -> None:
    headers = {"X-No-Session": value, "X-Session-ID": "not-kept"}
    for stream in (False, True):
        answer = http.post(CHAT, json={**HELLO, "stream": stream}, headers=headers)
        assert answer.status_code == 200
        assert "x-session-id" not in answer.headers
    assert http.get(f"{SESSIONS}/not-kept/history").json() == {"messages": []}


def test_deleting_a_session_during_its_stream_lets_it_end_and_keeps_nothing(http: httpx.Client) -> None:
    headers = {"X-Session-ID": "deleted-early"}
    body = {**HELLO, "stream": True, "max_tokens": 300, "rag_enabled": False, "logit_bias": {"70": 100}}
    with http.stream("POST", CHAT, json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert http.delete(f"{SESSIONS}/deleted-early").status_code == 200
        *_, last = [line for line in lines if line]
    assert last == "data: [DONE]"
    assert http.get(f"{SESSIONS}/deleted-early/history").json()["messages"] == []
    assert http.delete(f"{SESSIONS}/deleted-early").status_code == 404
