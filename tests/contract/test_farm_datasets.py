"""LlamaFarm's document, section "Datasets API", and what its CLI and its Designer read and send beyond it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.shape import assert_shape
from tests.running_server import RunningServer

PROJECT = "/v1/projects/my-org/herds"
DATASET = {"name": "research_papers", "database": "main_db", "data_processing_strategy": "universal_processor"}
DATA = f"{PROJECT}/datasets/research_papers"
GATE = b"The barn gate closes at 21:00."
GATE_HASH = hashlib.sha256(GATE).hexdigest()
LONG = " ".join(f"Sentence number {n} is about llamas." for n in range(60)).encode()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        client.delete(PROJECT)
        created = client.post("/v1/projects/my-org", json={"name": "herds", "config_template": "rag"})
        assert created.status_code == 200, created.text
        yield client


@pytest.fixture
def farm(client: httpx.Client) -> httpx.Client:
    """The client, with an empty dataset."""
    client.delete(DATA)
    created = client.post(f"{PROJECT}/datasets", json=DATASET)
    assert created.status_code == 200, created.text
    return client


def upload(client: httpx.Client, name: str, content: bytes, query: str = "", **form: str) -> dict[str, Any]:
    answer = client.post(f"{DATA}/data{query}", files={"file": (name, content)}, data=form)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ended(client: httpx.Client, task_id: str) -> dict[str, Any]:
    """The task when it has ended, polled as the CLI does."""
    while True:
        task = client.get(f"{PROJECT}/tasks/{task_id}").json()
        if task["state"] in ("SUCCESS", "FAILURE"):
            return dict(task)


def test_datasets_are_listed_for_the_document_the_cli_and_without_details(farm: httpx.Client) -> None:
    upload(farm, "paper1.txt", GATE)
    file = {"hash": "abc123", "original_filename": "paper1.txt", "size": 524288, "timestamp": 1677652288.0}
    seen_by_cli = {
        "original_file_name": "paper1.txt",
        "resolved_file_name": "abc123",
        "timestamp": 1677652288.0,
        "size": 524288,
        "mime_type": "text/plain",
        "hash": "abc123",
    }
    details = {
        "total_files": 2,
        "total_size_bytes": 1048576,
        "file_details": [file],
        "files_metadata": [seen_by_cli],
    }
    answer = farm.get(f"{PROJECT}/datasets/?include_extra_details=true").json()
    assert_shape({"total": 2, "datasets": [{**DATASET, "files": ["abc123"], "details": details}]}, answer)
    plain = farm.get(f"{PROJECT}/datasets?include_extra_details=false").json()["datasets"][0]
    assert "details" not in plain
    assert plain["files"] == [GATE_HASH]


def test_comments_and_order_of_a_file_edited_by_hand_outlive_the_api(
    server: RunningServer, client: httpx.Client
) -> None:
    project = "/v1/projects/my-org/noted"
    client.delete(project)
    client.post("/v1/projects/my-org", json={"name": "noted", "config_template": "rag"})
    path = server.data_dir / "projects/my-org/noted/llamafarm.yaml"
    text = path.read_text().replace("rag:\n", "# Ask Zoë first.\nrag:   # ours\n", 1)
    path.write_text(f"# The notes' bot.\n{text}x_own: on   # for the other program\n")
    by_hand = path.read_text()
    assert client.post(f"{project}/datasets", json={**DATASET, "name": "notes"}).status_code == 200
    assert client.post(f"{project}/rag/databases", json={"name": "second"}).status_code == 201
    config = client.get(project).json()["project"]["config"]
    assert client.put(project, json={"config": {**config, "description": "new"}}).status_code == 200
    gone = [line for line in by_hand.splitlines() if line not in path.read_text().splitlines()]
    assert gone in ([], ["datasets: []"])
    assert client.delete(f"{project}/datasets/notes").status_code == 200
    assert client.delete(f"{project}/rag/databases/second").status_code == 200
    after = path.read_text()
    assert sorted(after.splitlines()) == sorted([*by_hand.splitlines(), "description: new"])
    client.delete(project)


def test_strategies_name_the_built_in_ones(farm: httpx.Client) -> None:
    answer = farm.get(f"/api{PROJECT}/datasets/strategies").json()
    assert {"universal_processor", "universal_rag"} <= set(answer["data_processing_strategies"])
    assert answer["databases"] == ["main_db"]


def test_create_and_delete_answer_the_dataset(farm: httpx.Client) -> None:
    other = {**DATASET, "name": "other", "data_processing_strategy": "universal_rag"}
    created = farm.post(f"{PROJECT}/datasets/", json=other)
    assert created.status_code == 200
    assert_shape({"dataset": {**other, "files": []}}, created.json())
    assert farm.post(f"{PROJECT}/datasets/", json=other).status_code == 409
    deleted = farm.delete(f"{PROJECT}/datasets/other")
    assert_shape({"dataset": {**other, "files": []}}, deleted.json())
    assert farm.delete(f"{PROJECT}/datasets/other").status_code == 404


def test_upload_answers_as_documented_and_says_what_it_did_with_a_duplicate(farm: httpx.Client) -> None:
    answer = upload(farm, "paper1.txt", GATE)
    assert_shape({"filename": "paper1.txt", "hash": "abc123def456", "processed": False}, answer)
    assert (answer["hash"], answer["status"], answer["skipped"]) == (GATE_HASH, "uploaded", False)
    again = upload(farm, "other-name.txt", GATE)
    assert (again["filename"], again["skipped"], again["status"]) == ("paper1.txt", True, "skipped")
    assert "'paper1.txt'" in again["reason"]


def test_upload_processes_at_once_when_asked_to(farm: httpx.Client) -> None:
    answer = upload(farm, "paper1.txt", GATE, "?auto_process=true")
    assert answer["status"] == "processing"
    task = ended(farm, answer["task_id"])
    assert (task["state"], task["result"]["processed_files"]) == ("SUCCESS", 1)


@pytest.mark.parametrize("order", ["before", "after"])
def test_parser_overrides_take_effect_wherever_they_stand_in_the_form(farm: httpx.Client, order: str) -> None:
    overrides = ("parser_overrides", (None, json.dumps({"chunk_size": 100, "chunk_overlap": 0})))
    file = ("file", ("long.txt", LONG))
    parts = [overrides, file] if order == "before" else [file, overrides]
    assert farm.post(f"{DATA}/data", files=parts).status_code == 200  # type: ignore[arg-type]
    (detail,) = farm.post(f"{DATA}/process").json()["details"]
    assert (detail["status"], detail["chunk_size"]) == ("processed", 100)
    assert detail["chunks"] > 20


@pytest.mark.parametrize(
    ("overrides", "status"),
    [("no JSON", 400), ("[1]", 400), ('{"chunk_size": "big"}', 422), ('{"x": 1}', 422), ('"' + "x" * 11_000, 400)],
)
def test_parser_overrides_that_can_have_no_effect_are_refused_with_the_file(
    farm: httpx.Client, overrides: str, status: int
) -> None:
    answer = farm.post(f"{DATA}/data", files={"file": ("a.txt", GATE)}, data={"parser_overrides": overrides})
    assert answer.status_code == status, answer.text
    assert "parser_overrides" in answer.json()["detail"] or "parser_overrides" in answer.text
    assert farm.get(f"{PROJECT}/datasets").json()["datasets"][0]["files"] == []


def test_a_bulk_upload_stores_what_it_can(farm: httpx.Client) -> None:
    upload(farm, "paper1.txt", GATE)
    parts = [("files", (f"f{n}.txt", b"Text %d." % n)) for n in range(100)]
    answer = farm.post(f"{DATA}/data/bulk", files=[("files", ("again.txt", GATE)), *parts])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["uploaded"], body["skipped"], body["failed"], body["status"]) == (99, 1, 1, "uploaded")
    assert (body["files"][0]["filename"], body["files"][0]["status"]) == ("paper1.txt", "skipped")
    assert body["files"][-1]["status"] == "failed"
    assert "100 files" in body["files"][-1]["error"]
    assert "task_id" not in body
    assert len(farm.get(f"{PROJECT}/datasets").json()["datasets"][0]["files"]) == 100


def test_a_bulk_upload_processes_when_asked_to_and_a_bad_file_fails_alone(farm: httpx.Client) -> None:
    parts = [("files", ("good.txt", GATE)), ("files", ("bad.pdf", b"%PDF-1.7 nonsense"))]
    body = farm.post(f"/api{DATA}/data/bulk?auto_process=true", files=parts).json()
    assert (body["uploaded"], body["status"]) == (2, "processing")
    task = ended(farm, body["task_id"])
    assert (task["state"], task["result"]["processed_files"], task["result"]["failed_files"]) == ("SUCCESS", 1, 1)


def test_a_bulk_upload_without_files_is_refused(farm: httpx.Client) -> None:
    answer = farm.post(f"{DATA}/data/bulk", files={"file": ("a.txt", GATE)})
    assert (answer.status_code, "'files'" in answer.json()["detail"]) == (422, True)


def test_processing_answers_each_file(farm: httpx.Client) -> None:
    upload(farm, "paper1.txt", GATE)
    upload(farm, "broken.pdf", b"%PDF-1.7 nonsense")
    answer = farm.post(f"{DATA}/process")
    assert answer.status_code == 200, answer.text
    detail = {
        "hash": "abc123",
        "filename": "paper1.pdf",
        "status": "processed",
        "parser": "pdf",
        "extractors": ["text"],
        "chunks": 42,
        "chunk_size": 500,
        "embedder": "sentence-transformers",
        "file_hash": "abc123",
        "stored_count": 42,
        "skipped_count": 0,
    }
    body = answer.json()
    processed, failed = body.pop("details")
    documented = {
        "message": "Dataset processing completed",
        "processed_files": 2,
        "skipped_files": 0,
        "failed_files": 0,
        "strategy": "universal_processor",
        "database": "main_db",
    }
    assert_shape(documented, body)
    assert_shape(detail, processed)
    assert (body["processed_files"], body["failed_files"]) == (1, 1)
    assert (failed["status"], "damaged" in failed["error"]) == ("failed", True)
    skipped = farm.post(f"{DATA}/process").json()["details"][0]
    assert (skipped["status"], skipped["reason"], skipped["skipped_count"]) == ("skipped", "already processed", 1)


@pytest.mark.parametrize("action", ["process", "ingest"])
def test_the_process_action_answers_a_task_on_the_host_it_was_sent_to(farm: httpx.Client, action: str) -> None:
    upload(farm, "paper1.txt", GATE)
    body = farm.post(f"{DATA}/actions", json={"action_type": action}).json()
    assert_shape({"message": "Accepted", "task_uri": "http://localhost", "task_id": "abc"}, body)
    assert body["task_uri"] == f"{farm.base_url}{PROJECT}/tasks/{body['task_id']}".replace("//v1", "/v1")
    assert farm.get(body["task_uri"]).status_code == 200
    assert ended(farm, body["task_id"])["state"] == "SUCCESS"


def test_the_process_action_can_be_about_one_file_with_settings_of_its_own(farm: httpx.Client) -> None:
    digest = upload(farm, "long.txt", LONG)["hash"]
    upload(farm, "paper1.txt", GATE)
    action = {"action_type": "process", "file_hash": digest, "parser_overrides": {"chunk_size": 100}}
    task = ended(farm, farm.post(f"{DATA}/actions", json=action).json()["task_id"])
    ((ok, detail),) = task["result"]["details"]
    assert (ok, detail["filename"], detail["chunk_size"]) == (True, "long.txt", 100)


def test_chunks_are_deleted_by_action(farm: httpx.Client) -> None:
    digest = upload(farm, "paper1.txt", GATE)["hash"]
    upload(farm, "other.txt", b"Goats are milked at six.")
    farm.post(f"{DATA}/process")
    one = farm.post(f"{DATA}/actions", json={"action_type": "delete_file_chunks", "file_hash": digest}).json()
    assert_shape({"message": "text", "file_hash": "abc", "deleted_chunks": 1}, one)
    assert (one["file_hash"], one["deleted_chunks"], "task_id" in one) == (digest, 1, False)
    every = farm.post(f"{DATA}/actions", json={"action_type": "delete_dataset_chunks"}).json()
    assert_shape(
        {"message": "text", "total_deleted_chunks": 1, "total_files_cleared": 1, "total_files_failed": 0}, every
    )
    assert (every["total_deleted_chunks"], every["total_files_cleared"]) == (1, 2)
    found = farm.post(f"{PROJECT}/rag/query", json={"query": "barn gate"}).json()
    assert found["results"] == []


@pytest.mark.parametrize(
    ("action", "status", "field"),
    [
        ({"action_type": "explode"}, 422, "action_type"),
        ({}, 422, "action_type"),
        ({"action_type": "delete_file_chunks"}, 422, "file_hash"),
        ({"action_type": "delete_file_chunks", "file_hash": "a" * 64}, 404, "a" * 64),
        ({"action_type": "process", "file_hash": "a" * 64}, 404, "a" * 64),
        ({"action_type": "process", "file_hash": "../x"}, 400, "hash"),
        ({"action_type": "delete_dataset_chunks", "parser_overrides": {"chunk_size": 100}}, 422, "parser_overrides"),
        ({"action_type": "process", "parser_overrides": {"chunk_size": 1}}, 422, "chunk_size"),
    ],
)
def test_an_action_that_makes_no_sense_is_refused(
    farm: httpx.Client, action: dict[str, Any], status: int, field: str
) -> None:
    upload(farm, "paper1.txt", GATE)
    answer = farm.post(f"{DATA}/actions", json=action)
    assert (answer.status_code, field in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("query", ["", "?remove_from_disk=true"])
def test_removing_a_file_answers_its_hash_and_chunks(farm: httpx.Client, query: str) -> None:
    digest = upload(farm, "paper1.txt", GATE)["hash"]
    farm.post(f"{DATA}/process")
    removed = farm.delete(f"{DATA}/data/{digest}{query}")
    assert (removed.status_code, removed.json()) == (200, {"file_hash": digest, "deleted_chunks": 1})
    assert farm.delete(f"{DATA}/data/{digest}{query}").status_code == 404


def test_a_wrong_parser_setting_is_refused_when_the_project_is_written(farm: httpx.Client) -> None:
    config = farm.get(PROJECT).json()["project"]["config"]
    strategy = {"name": "pdfs", "parsers": [{"type": "PDFParser_PyPDF2", "config": {"chunk_size": "big"}}]}
    config["rag"]["data_processing_strategies"] = [strategy]
    answer = farm.put(PROJECT, json={"config": config})
    assert answer.status_code == 422, answer.text
    assert "rag.data_processing_strategies.0.parsers.0.config.chunk_size" in answer.text
    strategy["parsers"][0]["config"]["chunk_size"] = 1500  # type: ignore[index]
    config["rag"]["data_processing_strategies"] += [
        {"name": "universal_processor", "parsers": ["auto"], "extractors": [{"type": "KeywordExtractor"}]}
    ]
    assert farm.put(PROJECT, json={"config": config}).status_code == 200
    upload(farm, "paper1.txt", GATE)
    (detail,) = farm.post(f"{DATA}/process").json()["details"]
    assert detail["extractors"] == ["text", "KeywordExtractor"]
    assert detail["metadata"]["keywords"]
    (seen,) = farm.get(f"{PROJECT}/datasets").json()["datasets"][0]["details"]["files_metadata"]
    assert (seen["metadata"], seen["parser"], seen["chunk_count"]) == (detail["metadata"], "text", 1)
