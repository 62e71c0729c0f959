"""OpenAI's endpoints at the root: every field that OpenAI's documents show, and what is refused."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapters.test_embedder import make_cross_encoder
from tests.contract.shape import assert_shape
from tests.running_server import RunningServer, running

MODEL = "llamastead-tiny-4m"
EMBEDDER = "all-MiniLM-L6-v2"
CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "temperature": 0}
TEXT = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "x",
    "choices": [{"text": "x", "index": 0, "logprobs": None, "finish_reason": "length"}],
    "usage": USAGE,
}
ON_BOARD = next((Path(__file__).parents[2] / "server" / "llamastead_server" / "models").glob("*.gguf"))
PREFIXES = pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])


def assert_refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert_shape({"detail": "…", "error": {"message": "…", "type": "…", "code": "…"}}, answer.json())
    return dict(answer.json()["error"])


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    blocks = [block.removeprefix("data: ") for block in answer.text.split("\n\n") if block and block[0] != ":"]
    return [block if block == "[DONE]" else json.loads(block) for block in blocks]


@PREFIXES
@pytest.mark.parametrize("model", [None, MODEL, "llama3.3"])
def test_a_chat_needs_no_project_and_keeps_nothing(http: httpx.Client, prefix: str, model: str | None) -> None:
    body = CHAT if model is None else {**CHAT, "model": model}
    answer = http.post(f"{prefix}/chat/completions", json=body, headers={"X-Session-ID": "kept-nowhere"})
    assert answer.status_code == 200, answer.text
    assert "x-session-id" not in answer.headers
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "x"}
    assert_shape({**head, "choices": [choice], "usage": USAGE}, answer.json())
    assert answer.json()["model"] == (model or MODEL)


def test_a_chat_is_streamed(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"]
    *chunks, done = events(http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole


@pytest.mark.parametrize(
    "wrong",
    [
        {"rag_enabled": True},
        {"database": "main_db"},
        {"include_sources": True},
        {"variables": {"a": "b"}},
        {"namespace": "default"},
        {"project": "quickstart"},
        {"session_id": "s"},
    ],
    ids=str,
)
def test_what_needs_a_project_is_refused(http: httpx.Client, wrong: dict[str, Any]) -> None:
    error = assert_refused(http.post("/v1/chat/completions", json={**CHAT, **wrong}), 400)
    assert "/v1/projects/" in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", TEXT),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
    ],
)
def test_an_unknown_model_is_404(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    for stream in ({}, {"stream": True}):
        assert assert_refused(http.post(path, json={**body, "model": "absent", **stream}), 404)["code"] in (
            "model_not_found",
            "not_found",
        )


@PREFIXES
def test_text_is_continued(http: httpx.Client, prefix: str) -> None:
    answer = http.post(f"{prefix}/completions", json={**TEXT, "model": "llama3.3"})
    assert answer.status_code == 200, answer.text
    assert_shape(COMPLETION, answer.json())
    assert answer.json()["usage"]["completion_tokens"] <= 8
    assert answer.json()["model"] == "llama3.3"


def test_several_prompts_are_continued_each_under_its_index(http: httpx.Client) -> None:
    prompts = ["Once upon a time", "The llama"]
    alone = [http.post("/v1/completions", json={**TEXT, "prompt": one}).json() for one in prompts]
    together = http.post("/v1/completions", json={**TEXT, "prompt": prompts}).json()
    assert [choice["index"] for choice in together["choices"]] == [0, 1]
    assert [choice["text"] for choice in together["choices"]] == [one["choices"][0]["text"] for one in alone]
    assert together["usage"]["total_tokens"] == sum(one["usage"]["total_tokens"] for one in alone)


@pytest.mark.parametrize("stream", [False, True])
def test_each_prompt_is_continued_as_often_as_asked_for(http: httpx.Client, stream: bool) -> None:
    body = {**TEXT, "temperature": 1.5, "seed": 3}
    prompts = ["Once upon a time", "The llama"]
    alone = [
        http.post("/v1/completions", json={**body, "prompt": prompt, "seed": 3 + choice}).json()
        for prompt in prompts
        for choice in range(2)
    ]
    together = {**body, "prompt": prompts, "n": 2, "stream": stream, "stream_options": {"include_usage": True}}
    answer = http.post("/v1/completions", json=together)
    *parts, whole = events(answer)[:-1] if stream else [answer.json(), answer.json()]
    for index, one in enumerate(alone):
        mine = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in mine) == one["choices"][0]["text"]
    assert whole["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone[::2])
    assert whole["usage"]["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in alone)


def test_several_answers_need_no_project(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, "n": 2}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["message"] == answer["choices"][1]["message"]


def test_a_completion_is_streamed_and_ends_with_usage_when_asked(http: httpx.Client) -> None:
    body = {**TEXT, "prompt": ["Once upon a time", "The llama"]}
    whole = http.post("/v1/completions", json=body).json()
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    *parts, usage, done = events(http.post("/v1/completions", json=streamed))
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    for index, choice in enumerate(whole["choices"]):
        mine = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [part["finish_reason"] for part in mine][-1] == choice["finish_reason"]
        assert {part["finish_reason"] for part in mine[:-1]} == {None}


def test_log_probabilities_have_the_older_endpoints_shape(http: httpx.Client) -> None:
    choice = http.post("/v1/completions", json={**TEXT, "logprobs": 2}).json()["choices"][0]
    shape = {"tokens": ["x"], "token_logprobs": [-0.1], "top_logprobs": [{}], "text_offset": [0]}
    assert_shape(shape, choice["logprobs"])
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert {len(top) for top in choice["logprobs"]["top_logprobs"]} == {2}


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"echo": True}, 400),
        ({"suffix": "end"}, 400),
        ({"best_of": 2}, 400),
        ({"prompt": [1, 2, 3]}, 400),
        ({"prompt": [[1, 2]]}, 400),
        ({"prompt": "word " * 20_000}, 400),
        ({"prompt": ""}, 422),
        ({"prompt": []}, 422),
        ({"prompt": ["x"] * 33}, 422),
        ({"n": 9}, 422),
        ({"max_tokens": 0}, 422),
        ({"temperature": 3}, 422),
        ({"logprobs": 21}, 422),
        ({"stop": [""]}, 422),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_completion_is_refused_before_any_work(http: httpx.Client, wrong: dict[str, Any], status: int) -> None:
    for stream in (False, True):
        assert_refused(http.post("/v1/completions", json={**TEXT, **wrong, "stream": stream}), status)


@PREFIXES
def test_models_are_listed_and_given_in_openais_shape(http: httpx.Client, prefix: str) -> None:
    answer = http.get(f"{prefix}/models")
    assert_shape(
        {"object": "list", "data": [{"id": "x", "object": "model", "created": 1, "owned_by": "x"}]}, answer.json()
    )
    assert [model["id"] for model in answer.json()["data"]] == [MODEL, EMBEDDER]
    for name in (MODEL, EMBEDDER, "llama3.3"):
        assert http.get(f"{prefix}/models/{name}").json()["id"] == name
    assert_refused(http.get(f"{prefix}/models/absent"), 404)


@PREFIXES
@pytest.mark.parametrize("slash", ["/", "%2F", "%2f"])
def test_a_model_is_given_by_a_name_with_slashes_escaped_or_not(
    http: httpx.Client, server: RunningServer, prefix: str, slash: str
) -> None:
    folder = server.data_dir / "models" / "org" / "deep"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ON_BOARD, folder / "tiny.gguf")
    try:
        for name in ("org/deep/tiny.gguf", "org/deep/tiny.gguf/"):
            answer = http.get(f"{prefix}/models/{name.replace('/', slash)}")
            assert answer.status_code == 200, answer.text
            assert answer.json()["id"] == "org/deep/tiny.gguf"
    finally:
        (folder / "tiny.gguf").unlink()
    missing = http.get(f"{prefix}/models/org{slash}absent")
    assert "'org/absent'" in assert_refused(missing, 404)["message"]
    assert http.get(f"{prefix}/models{slash}?x=1").status_code == (200 if slash == "/" else 400)
    assert http.head(f"{prefix}/models/llama3.3").status_code == 200
    assert http.delete(f"{prefix}/models/org{slash}absent").status_code == 405
    outside = http.get(f"{prefix}/models/a{slash}..{slash}..{slash}..{slash}etc")
    assert outside.status_code in (400, 404), outside.text


@PREFIXES
def test_texts_are_embedded(http: httpx.Client, prefix: str) -> None:
    answer = http.post(f"{prefix}/embeddings", json={"model": EMBEDDER, "input": ["A llama.", "A farm."]})
    assert answer.status_code == 200, answer.text
    entry = {"object": "embedding", "index": 0, "embedding": [0.1]}
    assert_shape(
        {"object": "list", "data": [entry], "model": EMBEDDER, "usage": {"prompt_tokens": 1, "total_tokens": 1}},
        answer.json(),
    )
    assert [entry["index"] for entry in answer.json()["data"]] == [0, 1]
    for entry in answer.json()["data"]:
        assert len(entry["embedding"]) == 384
        assert sum(value * value for value in entry["embedding"]) == pytest.approx(1, abs=1e-4)
    # [CLS] a llama . [SEP] is more than the words.
    assert answer.json()["usage"]["total_tokens"] > 4


def test_base64_holds_the_same_floats(http: httpx.Client) -> None:
    floats = http.post("/v1/embeddings", json={"input": "A llama."}).json()["data"][0]["embedding"]
    body = {"input": "A llama.", "encoding_format": "base64", "dimensions": 384}
    packed = base64.b64decode(http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(floats, abs=1e-6)


def test_each_field_of_an_embedding_request_is_effective_or_refused_in_words(http: httpx.Client) -> None:
    absent = assert_refused(http.post("/v1/embeddings", json={"input": "x", "model": "text-embedding-3-small"}), 404)
    assert (absent["code"], absent["details"]) == ("model_not_found", {"model": "text-embedding-3-small"})
    for word in ("text-embedding-3-small", EMBEDDER, "LLAMASTEAD_MODEL_ALIASES"):
        assert word in absent["message"]
    for length in (0, 1, 383, 385, 4_000_000_000):
        body = {"input": "x", "dimensions": length}
        assert "384 dimensions" in assert_refused(http.post("/v1/embeddings", json=body), 400)["message"]
    assert "takes no tokens" in assert_refused(http.post("/v1/embeddings", json={"input": [[1, 2]]}), 400)["message"]
    one, listed = (
        http.post("/v1/embeddings", json={"input": text, "encoding_format": "float", "model": EMBEDDER}).json()
        for text in ("A llama.", ["A llama."])
    )
    assert one["data"] == listed["data"]
    assert one["data"][0]["embedding"][0] != 0


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"input": [1, 2, 3]}, 400),
        ({"input": [[1, 2]]}, 400),
        ({"input": {"text": "x"}}, 400),
        ({"input": "x", "encoding_format": "int8"}, 400),
        ({"input": "x", "dimensions": 64}, 400),
        ({"input": "word " * 2000}, 400),
        ({}, 422),
        ({"input": ""}, 422),
        ({"input": []}, 422),
        ({"input": ["x", " "]}, 422),
        ({"input": ["x"] * 2049}, 422),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_embedding_request_is_refused(http: httpx.Client, wrong: dict[str, Any], status: int) -> None:
    assert_refused(http.post("/v1/embeddings", json=wrong), status)


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"query": " "}, 422),
        ({"documents": []}, 422),
        ({"top_n": 0}, 422),
        ({"documents": [7]}, 400),
        ({"model": ""}, 422),
    ],
    ids=str,
)
def test_a_wrong_rerank_request_is_refused(http: httpx.Client, wrong: dict[str, Any], status: int) -> None:
    body = {"model": "cross", "query": "llama", "documents": ["x"], **wrong}
    assert_refused(http.post("/v1/rerank", json=body), status)


@pytest.fixture(scope="module")
def reranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("reranking")
    make_cross_encoder(folder / "data" / "models" / "cross")
    with running(folder) as server:
        yield server


@PREFIXES
def test_documents_are_ordered_by_a_cross_encoder(reranking: RunningServer, prefix: str) -> None:
    documents: list[Any] = ["llama eat grass", {"text": "stone"}, "grass grass"]
    body = {"model": "cross", "query": "llama", "documents": documents, "top_n": 2, "return_documents": True}
    answer = httpx.post(f"{reranking.url}{prefix}/rerank", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    result = {"index": 0, "relevance_score": 0.5, "document": {"text": "x"}}
    assert_shape({"id": "rerank-1", "model": "cross", "results": [result]}, answer.json())
    scores = [one["relevance_score"] for one in answer.json()["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    for one in answer.json()["results"]:
        document = documents[one["index"]]
        assert one["document"]["text"] == (document["text"] if isinstance(document, dict) else document)
    bare = httpx.post(f"{reranking.url}{prefix}/rerank", json={**body, "return_documents": False}, timeout=60)
    assert "document" not in bare.json()["results"][0]


def test_the_rerankers_folder_is_no_chat_model(reranking: RunningServer) -> None:
    assert (Path(reranking.data_dir) / "models" / "cross").is_dir()
    assert "cross" not in [model["id"] for model in httpx.get(f"{reranking.url}/v1/models").json()["data"]]
