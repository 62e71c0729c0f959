"""LlamaHome's document, section "POST /api/process_prompt", and its siblings that stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.shape import assert_shape
from tests.running_server import RunningServer, running

ANSWER = {"response": "…", "tokens_used": 1, "processing_time": 0.1, "model_used": "llama3.3"}
PROMPT = {"prompt": "Test prompt", "temperature": 0, "max_tokens": 8}
DOCUMENTED = {
    "prompt": "Tell me about llamas.",
    "model": "llama3.3",
    "temperature": 0.7,
    "max_tokens": 100,
    "top_p": 0.9,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
PREFIXES = pytest.mark.parametrize("prefix", ["/api", "/v1/api"])


def assert_home_error(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The documented envelope, whole."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert_shape({"code": "snake_case", "message": "…", "details": {}}, answer.json()["error"])
    assert answer.json()["error"]["code"] == answer.json()["error"]["code"].lower()
    return dict(answer.json()["error"])


def events(answer: httpx.Response) -> list[Any]:
    blocks = [block.removeprefix("data: ") for block in answer.text.split("\n\n") if block and block[0] != ":"]
    return [block if block == "[DONE]" else json.loads(block) for block in blocks]


@PREFIXES
def test_a_prompt_is_answered_with_the_documented_fields(http: httpx.Client, prefix: str) -> None:
    answer = http.post(f"{prefix}/process_prompt", json=PROMPT)
    assert answer.status_code == 200, answer.text
    assert_shape(ANSWER, answer.json())
    assert answer.json()["model_used"] == "llama3.3"
    assert answer.json()["tokens_used"] > 0
    assert answer.json()["processing_time"] > 0


def test_the_documented_request_with_every_field_is_answered(http: httpx.Client) -> None:
    answer = http.post("/api/process_prompt", json=DOCUMENTED)
    assert answer.status_code == 200, answer.text
    assert_shape(ANSWER, answer.json())


def test_a_prompt_alone_takes_the_documented_default_of_100_tokens(http: httpx.Client) -> None:
    answer = http.post("/api/process_prompt", json={"prompt": "Count.", "model": "llama3.3"}).json()
    alone = http.post("/api/process_prompt", json={"prompt": "Count.", "max_tokens": 1}).json()
    assert answer["tokens_used"] <= alone["tokens_used"] - 1 + 100


def test_the_model_is_echoed_as_it_was_named(http: httpx.Client) -> None:
    name = http.get("/api/models").json()["default_model"]
    assert http.post("/api/process_prompt", json={**PROMPT, "model": name}).json()["model_used"] == name


@PREFIXES
def test_process_answers_as_one_object_or_as_events(http: httpx.Client, prefix: str) -> None:
    whole = http.post(f"{prefix}/process", json=PROMPT)
    assert whole.headers["content-type"] == "application/json"
    assert_shape(ANSWER, whole.json())
    streamed = http.post(f"{prefix}/process", json={**PROMPT, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["cache-control"] == "no-cache"
    *pieces, last, done = events(streamed)
    assert done == "[DONE]"
    assert [piece["index"] for piece in (*pieces, last)] == list(range(len(pieces) + 1))
    assert "".join(piece["chunk"] for piece in pieces) == last["summary"]["response"] == whole.json()["response"]
    assert_shape(ANSWER, last["summary"])


@PREFIXES
def test_stream_answers_lines_when_they_are_accepted(http: httpx.Client, prefix: str) -> None:
    answer = http.post(f"{prefix}/stream", json=PROMPT, headers={"Accept": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    *pieces, last = [json.loads(line) for line in answer.text.splitlines()]
    for piece in pieces:
        assert_shape({"chunk": "First", "index": 0}, piece)
    assert "".join(piece["chunk"] for piece in pieces) == last["summary"]["response"]
    assert events(http.post(f"{prefix}/stream", json=PROMPT))[-1] == "[DONE]"


def test_an_endpoint_refuses_the_other_way_to_answer(http: httpx.Client) -> None:
    assert_home_error(http.post("/api/process_prompt", json={**PROMPT, "stream": True}), 400)
    assert_home_error(http.post("/api/stream", json={**PROMPT, "stream": False}), 400)


@pytest.mark.parametrize("path", ["/api/process_prompt", "/api/process", "/api/stream"])
@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": " \n"}], ids=str)
def test_a_blank_prompt_is_422_and_names_the_field(http: httpx.Client, path: str, body: dict[str, str]) -> None:
    error = assert_home_error(http.post(path, json=body), 422)
    assert error["code"] == "validation_failed"
    assert "prompt" in error["details"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": 2.1},
        {"max_tokens": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"frequency_penalty": 3},
        {"presence_penalty": -3},
        {"timeout": 0},
        {"timeout": -1},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_422_and_names_the_field(http: httpx.Client, wrong: dict[str, float]) -> None:
    for path in ("/api/process_prompt", "/api/stream"):
        error = assert_home_error(http.post(path, json={**PROMPT, **wrong}), 422)
        assert set(error["details"]) == set(wrong)


@pytest.mark.parametrize("body", [b"{", b'{"prompt": 7}', b'{"prompt": "x", "max_tokens": "many"}', b"[1]"])
def test_a_malformed_body_is_400(http: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert_home_error(http.post("/api/process_prompt", content=body, headers=headers), 400)


def test_a_prompt_longer_than_the_window_is_400_with_both_numbers(http: httpx.Client) -> None:
    for path in ("/api/process_prompt", "/api/stream"):
        error = assert_home_error(http.post(path, json={"prompt": "word " * 20_000}), 400)
        assert error["code"] == "context_length_exceeded"
        assert {"prompt_tokens", "context_length"} <= set(error["details"])


def test_an_unknown_model_is_404(http: httpx.Client) -> None:
    for path in ("/api/process_prompt", "/api/process", "/api/stream"):
        error = assert_home_error(http.post(path, json={**PROMPT, "model": "absent"}), 404)
        assert error["code"] == "model_not_found"
        assert "absent" in error["message"]


def test_another_content_type_is_415(http: httpx.Client) -> None:
    answer = http.post("/api/process_prompt", content="prompt=x", headers={"Content-Type": "text/plain"})
    assert_home_error(answer, 415)


def test_a_body_over_the_limit_is_413(http: httpx.Client) -> None:
    body = json.dumps({"prompt": "x" * 5_000_000}).encode()
    headers = {"Content-Type": "application/json"}
    assert_home_error(http.post("/api/process_prompt", content=body, headers=headers), 413)


def test_a_timeout_of_the_request_is_408(http: httpx.Client) -> None:
    for path in ("/api/process_prompt", "/api/process", "/api/stream"):
        error = assert_home_error(http.post(path, json={**DOCUMENTED, "timeout": 0.000_001}), 408)
        assert error["code"] == "request_timeout"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that answers one request at a time and lets none wait."""
    settings = {"LLAMASTEAD_ENGINE_SLOTS": "1", "LLAMASTEAD_ENGINE_QUEUE": "0"}
    with running(tmp_path_factory.mktemp("small"), settings=settings) as server:
        yield server


@pytest.fixture
def client(small: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small.url, timeout=60) as client:
        yield client


def test_a_full_queue_is_503_with_retry_after(client: httpx.Client) -> None:
    # A long array: it does not end by itself before the window does.
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 1500}
    long = {
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": 1900,
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": numbers}},
    }
    with client.stream("POST", "/v1/chat/completions", json=long) as first:
        lines = first.iter_lines()
        next(lines)
        for path in ("/api/process_prompt", "/api/process", "/api/stream"):
            answer = client.post(path, json=PROMPT)
            assert assert_home_error(answer, 503)["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1


def test_the_servers_time_limit_is_408_and_can_be_changed_at_run_time(client: httpx.Client) -> None:
    limit = {"system_settings": {"request_timeout_seconds": 0.000_001}}
    assert client.post("/api/config", json=limit).status_code == 200
    assert_home_error(client.post("/api/process_prompt", json={**PROMPT, "timeout": 60}), 408)
    client.post("/api/reset_config")
    assert client.get("/api/get_config").json()["system_settings"]["request_timeout_seconds"] == 600
