"""OpenAI's files and batches, through the gateway and by its SDK."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.contract.shape import assert_shape
from tests.running_server import RunningServer, running

CHAT = "/v1/chat/completions"
BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": CHAT,
    "errors": None,
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "completed",
    "created_at": 1,
    "expires_at": 1,
    "request_counts": {"total": 1, "completed": 1, "failed": 0},
    "metadata": {},
}
FILE = {"id": "file-1", "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
OPEN = ("validating", "in_progress", "finalizing", "cancelling")


def chat_line(custom_id: str, **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "temperature": 0, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def upload(http: httpx.Client, content: bytes) -> str:
    answer = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    assert answer.status_code == 200, answer.text
    assert_shape(FILE, answer.json())
    assert answer.json()["bytes"] == len(content)
    return str(answer.json()["id"])


def begin(http: httpx.Client, content: bytes, endpoint: str = CHAT) -> str:
    body = {"input_file_id": upload(http, content), "endpoint": endpoint, "completion_window": "24h"}
    answer = http.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    assert_shape(BATCH, answer.json())
    assert answer.json()["status"] == "validating"
    return str(answer.json()["id"])


def ended(http: httpx.Client, batch_id: str, limit: float = 90) -> dict[str, Any]:
    deadline = time.monotonic() + limit
    while (batch := http.get(f"/v1/batches/{batch_id}").json())["status"] in OPEN:
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return dict(batch)


def content(http: httpx.Client, file_id: str) -> list[dict[str, Any]]:
    answer = http.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/jsonl"
    return [json.loads(line) for line in answer.text.splitlines()]


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert_shape({"detail": "…", "error": {"message": "…", "type": "…", "code": "…"}}, answer.json())
    return dict(answer.json()["error"])


def test_a_batch_answers_every_line_and_keeps_errors_apart(http: httpx.Client) -> None:
    lines = [chat_line("a"), chat_line("b", temperature=9), chat_line("c"), chat_line("d", stream=True)]
    batch = ended(http, begin(http, jsonl(lines)))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["completed_at"]
    answers = content(http, batch["output_file_id"])
    assert [answer["custom_id"] for answer in answers] == ["a", "c"]
    for answer in answers:
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["object"] == "chat.completion"
    errors = content(http, batch["error_file_id"])
    assert [(error["custom_id"], error["response"]["status_code"]) for error in errors] == [("b", 422), ("d", 400)]
    assert "temperature" in errors[0]["response"]["body"]["error"]["message"]
    alone = http.post(CHAT, json=chat_line("a")["body"]).json()["choices"][0]["message"]
    assert answers[0]["response"]["body"]["choices"][0]["message"] == alone


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "Once", "max_tokens": 3}, "text_completion"),
        ("/v1/embeddings", {"input": ["A llama.", "A farm."]}, "list"),
    ],
)
def test_a_batch_runs_the_other_endpoints_too(
    http: httpx.Client, endpoint: str, body: dict[str, Any], kind: str
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
    batch = ended(http, begin(http, jsonl([line]), endpoint))
    (answer,) = content(http, batch["output_file_id"])
    assert answer["response"]["body"]["object"] == kind
    assert "error_file_id" not in batch


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (b"", "no requests"),
        (b"not json\n", "not JSON"),
        (b"[1]\n", "not an object"),
        (jsonl([chat_line("a"), chat_line("a")]), "used before"),
        (jsonl([{**chat_line("a"), "custom_id": ""}]), "custom_id"),
        (jsonl([{**chat_line("a"), "url": "/v1/embeddings"}]), "endpoint"),
        (jsonl([{**chat_line("a"), "method": "GET"}]), "POST"),
        (jsonl([{**chat_line("a"), "body": 7}]), "body"),
        (jsonl([chat_line("a"), chat_line("\ud800")]), "surrogate"),
        (jsonl([chat_line("a", user="\udfff")]), "surrogate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_line_fails_the_batch_before_any_work(http: httpx.Client, lines: bytes, said: str) -> None:
    batch = ended(http, begin(http, lines))
    assert batch["status"] == "failed"
    assert_shape({"object": "list", "data": [{"code": "x", "line": ..., "message": "…"}]}, batch["errors"])
    assert said in batch["errors"]["data"][0]["message"]
    assert batch["request_counts"]["completed"] == 0


def test_a_batch_is_refused_for_what_it_can_not_do(http: httpx.Client) -> None:
    file_id = upload(http, jsonl([chat_line("a")]))
    good = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    refused(http.post("/v1/batches", json={**good, "endpoint": "/v1/rerank"}), 400)
    refused(http.post("/v1/batches", json={**good, "completion_window": "1h"}), 400)
    refused(http.post("/v1/batches", json={**good, "metadata": {str(key): "x" for key in range(17)}}), 400)
    refused(http.post("/v1/batches", json={**good, "input_file_id": "file-absent"}), 404)
    refused(http.get("/v1/batches/batch_absent"), 404)
    refused(http.post("/v1/batches/batch_absent/cancel"), 404)


def test_files_are_listed_read_and_deleted(http: httpx.Client) -> None:
    body = jsonl([chat_line("a")])
    first, second = upload(http, body), upload(http, body)
    assert http.get(f"/v1/files/{first}").json()["id"] == first
    assert http.get(f"/v1/files/{first}/content").content == body
    page = http.get("/v1/files", params={"limit": 1}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == ([second], True)
    page = http.get("/v1/files", params={"limit": 1, "after": second}).json()
    assert page["data"][0]["id"] == page["first_id"] == page["last_id"] == first
    assert http.get("/v1/files", params={"order": "asc"}).json()["data"][-1]["id"] == second
    assert {file["purpose"] for file in http.get("/v1/files?purpose=batch").json()["data"]} == {"batch"}
    assert http.delete(f"/v1/files/{first}").json() == {"id": first, "object": "file", "deleted": True}
    for answer in (
        http.get(f"/v1/files/{first}"),
        http.get(f"/v1/files/{first}/content"),
        http.delete(f"/v1/files/{first}"),
    ):
        refused(answer, 404)
    refused(http.get("/v1/files", params={"limit": 0}), 400)
    refused(http.get("/v1/files", params={"order": "sideways"}), 400)
    refused(http.get("/v1/files/..%2f..%2fllamastead/content"), 400)


def test_an_upload_needs_a_form_a_file_and_its_purpose(http: httpx.Client) -> None:
    file = {"file": ("in.jsonl", b"{}")}
    refused(http.post("/v1/files", files=file), 422)
    refused(http.post("/v1/files", data={"purpose": "fine-tune"}, files=file), 400)
    refused(http.post("/v1/files", files={"purpose": (None, "batch")}), 422)
    refused(http.post("/v1/files", json={"purpose": "batch"}), 415)
    # curl -F file=@x -F purpose=batch: the purpose comes last.
    late = http.post("/v1/files", files=[("file", ("in.jsonl", b"{}")), ("purpose", (None, b"batch"))])
    assert late.status_code == 200
    assert http.get("/v1/files").json()["data"][0]["id"] == late.json()["id"]


def test_the_sdk_runs_a_batch(server: RunningServer, tmp_path: Path, http: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    (tmp_path / "in.jsonl").write_bytes(jsonl([chat_line("a"), chat_line("b")]))
    with (tmp_path / "in.jsonl").open("rb") as file:
        stored = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(
        input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"job": "night"}
    )
    ended(http, batch.id)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.metadata == {"job": "night"}
    assert batch.output_file_id is not None
    assert len(client.files.content(batch.output_file_id).text.splitlines()) == 2
    assert batch.id in [one.id for one in client.batches.list(limit=5)]
    assert batch.output_file_id in [one.id for one in client.files.list()]
    assert client.files.delete(stored.id).deleted


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningServer]:
    settings = {"LLAMASTEAD_ENGINE_SLOTS": "1"}
    with running(tmp_path, settings=settings) as server:
        yield server
        if server.process is not None and server.process.poll() is None:
            server.stop()


def test_a_killed_server_goes_on_where_it_was_and_answers_no_line_twice(small: RunningServer) -> None:
    lines = [chat_line(f"line-{number}", max_tokens=60, temperature=1.5) for number in range(60)]
    with httpx.Client(base_url=small.url, timeout=60) as http:
        batch_id = begin(http, jsonl(lines))
        deadline = time.monotonic() + 60
        while http.get(f"/v1/batches/{batch_id}").json()["request_counts"]["completed"] < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    small.kill()
    (journal,) = [
        path for path in (small.data_dir / "batches").glob("file-*.jsonl") if b"batch_req_" in path.read_bytes()
    ]
    before = journal.read_bytes()
    # As if the power had gone while a line was written.
    journal.write_bytes(before + b'{"id": "torn')
    assert before.count(b"\n") < 60
    small.start()
    with httpx.Client(base_url=small.url, timeout=60) as http:
        batch = ended(http, batch_id)
        answers = content(http, batch["output_file_id"])
    assert batch["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    assert sorted(answer["custom_id"] for answer in answers) == sorted(line["custom_id"] for line in lines)
    assert journal.read_bytes().startswith(before)


def test_a_cancelled_batch_keeps_what_it_has_and_its_file_can_go_then(small: RunningServer) -> None:
    lines = [chat_line(f"line-{number}", max_tokens=60, temperature=1.5) for number in range(300)]
    with httpx.Client(base_url=small.url, timeout=60) as http:
        batch_id = begin(http, jsonl(lines))
        while not (now := http.get(f"/v1/batches/{batch_id}").json())["request_counts"]["completed"]:
            time.sleep(0.01)
        refused(http.delete(f"/v1/files/{now['input_file_id']}"), 409)
        assert http.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
        batch = ended(http, batch_id)
        assert batch["status"] == "cancelled"
        assert 0 < batch["request_counts"]["completed"] < 300
        assert len(content(http, batch["output_file_id"])) == batch["request_counts"]["completed"]
        refused(http.post(f"/v1/batches/{batch_id}/cancel"), 409)
        assert http.delete(f"/v1/files/{batch['input_file_id']}").status_code == 200


def test_interactive_requests_go_first(small: RunningServer) -> None:
    lines = [chat_line(f"line-{number}", max_tokens=60, temperature=1.5) for number in range(300)]
    with httpx.Client(base_url=small.url, timeout=60) as http:
        batch_id = begin(http, jsonl(lines))
        while http.get(f"/v1/batches/{batch_id}").json()["status"] != "in_progress":
            time.sleep(0.01)
        for _ in range(10):
            assert http.post("/api/process_prompt", json={"prompt": "Hello!", "max_tokens": 4}).status_code == 200
        # Each of them waited for one line at most, so the batch is far from its end.
        assert http.get(f"/v1/batches/{batch_id}").json()["request_counts"]["completed"] < 150
        http.post(f"/v1/batches/{batch_id}/cancel")
        ended(http, batch_id)


def test_a_token_sees_only_its_own_files_and_batches(tmp_path: Path) -> None:
    limits = {f"LLAMASTEAD_RATE_LIMIT_{kind}": "0" for kind in ("REQUESTS", "BATCH")}

    def caller(token: str) -> httpx.Client:
        return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def made(name: str) -> str:
        return str(admin.post("/v1/tokens", json={"name": name, "scope": "write"}).json()["secret"])

    with (
        running(tmp_path, settings={"LLAMASTEAD_API_TOKENS": "root", **limits}) as server,
        caller("root") as admin,
        caller(made("ann")) as ann,
        caller(made("bob")) as bob,
    ):
        batch = ended(ann, begin(ann, jsonl([chat_line("a")])))
        files = (batch["input_file_id"], batch["output_file_id"])
        for prefix in ("/v1", "/api/v1"):
            for file_id in files:
                refused(bob.get(f"{prefix}/files/{file_id}"), 404)
                refused(bob.get(f"{prefix}/files/{file_id}/content"), 404)
                refused(bob.delete(f"{prefix}/files/{file_id}"), 404)
            refused(bob.get(f"{prefix}/batches/{batch['id']}"), 404)
            refused(bob.post(f"{prefix}/batches/{batch['id']}/cancel"), 404)
            refused(bob.post(f"{prefix}/batches", json={"input_file_id": files[0], "endpoint": CHAT}), 404)
            assert bob.get(f"{prefix}/files").json()["data"] == []
            assert bob.get(f"{prefix}/batches").json()["data"] == []
        for eyes in (ann, admin):
            assert [entry["id"] for entry in eyes.get("/v1/batches").json()["data"]] == [batch["id"]]
            assert {entry["id"] for entry in eyes.get("/v1/files").json()["data"]} == set(files)
