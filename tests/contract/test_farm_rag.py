"""LlamaFarm's document, sections "Datasets API" and "RAG API", in the order a newcomer follows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import httpx
import pytest
from fpdf import FPDF

from tests.contract.shape import assert_shape

PROJECT = "/v1/projects/my-org/research"
DATASET = {"name": "research_papers", "database": "main_db", "data_processing_strategy": "universal_processor"}


def pdf(*pages: str) -> bytes:
    document = FPDF()
    for text in pages:
        document.add_page()
        document.set_font("Helvetica", size=12)
        document.multi_cell(0, 8, text)
    return bytes(document.output())


PAPER = pdf(
    "Clinical trials must follow the regulations of the agency.",
    "The quarterly audit of the Zephyr laboratory happens on the ninth of March.",
)
PAPER_HASH = hashlib.sha256(PAPER).hexdigest()


@pytest.fixture(scope="module")
def dataset(server: object) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:  # type: ignore[attr-defined]
        client.delete(PROJECT)
        created = client.post("/v1/projects/my-org", json={"name": "research", "config_template": "rag"})
        assert created.status_code == 200, created.text
        yield client


def test_strategies_are_listed(dataset: httpx.Client) -> None:
    answer = dataset.get(f"{PROJECT}/datasets/strategies").json()
    assert_shape({"data_processing_strategies": ["universal_processor"], "databases": ["main_db"]}, answer)


def test_create_dataset_answers_it(dataset: httpx.Client) -> None:
    answer = dataset.post(f"{PROJECT}/datasets", json=DATASET)
    assert answer.status_code == 200, answer.text
    assert_shape({"dataset": {**DATASET, "files": []}}, answer.json())
    assert dataset.post(f"{PROJECT}/datasets/", json=DATASET).status_code == 409


def test_an_unknown_database_or_strategy_is_refused(dataset: httpx.Client) -> None:
    for wrong in ({"database": "absent"}, {"data_processing_strategy": "absent"}):
        answer = dataset.post(f"{PROJECT}/datasets", json={**DATASET, "name": "other", **wrong})
        assert answer.status_code in (400, 404), answer.text
        assert "absent" in answer.json()["detail"]


@pytest.mark.parametrize("strategy", ["vector", "keyword", "hybrid"])
def test_a_database_without_documents_finds_nothing(dataset: httpx.Client, strategy: str) -> None:
    assert dataset.post(f"{PROJECT}/datasets/research_papers/process").status_code == 200
    answer = dataset.post(f"{PROJECT}/rag/query", json={"query": "moon", "retrieval_strategy": strategy})
    assert (answer.status_code, answer.json()["results"]) == (200, [])
    chat = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
    assert dataset.post(f"{PROJECT}/chat/completions", json=chat).status_code == 200


def test_upload_answers_name_and_hash(dataset: httpx.Client) -> None:
    answer = dataset.post(f"{PROJECT}/datasets/research_papers/data", files={"file": ("paper1.pdf", PAPER)})
    assert answer.status_code == 200, answer.text
    assert_shape({"filename": "paper1.pdf", "hash": "abc123def456", "processed": False}, answer.json())
    assert answer.json()["hash"] == PAPER_HASH
    assert answer.json()["filename"] == "paper1.pdf"


def test_a_duplicate_upload_is_skipped(dataset: httpx.Client) -> None:
    answer = dataset.post(f"{PROJECT}/datasets/research_papers/data", files={"file": ("again.pdf", PAPER)})
    assert answer.status_code == 200
    assert answer.json()["skipped"] is True
    listed = dataset.get(f"{PROJECT}/datasets").json()["datasets"][0]["files"]
    assert listed == [PAPER_HASH]


def test_list_datasets_has_details(dataset: httpx.Client) -> None:
    answer = dataset.get(f"{PROJECT}/datasets").json()
    file = {"hash": "abc123", "original_filename": "paper1.pdf", "size": 524288, "timestamp": 1677652288.0}
    details = {"total_files": 2, "total_size_bytes": 1048576, "file_details": [file]}
    assert_shape({"total": 2, "datasets": [{**DATASET, "files": ["abc123"], "details": details}]}, answer)
    assert answer["datasets"][0]["details"]["total_size_bytes"] == len(PAPER)
    plain = dataset.get(f"{PROJECT}/datasets?include_extra_details=false").json()["datasets"][0]
    assert "details" not in plain


def test_processing_answers_each_file(dataset: httpx.Client) -> None:
    answer = dataset.post(f"{PROJECT}/datasets/research_papers/process")
    assert answer.status_code == 200, answer.text
    detail = {
        "hash": "abc123",
        "filename": "paper1.pdf",
        "status": "processed",
        "parser": "pdf",
        "extractors": [],
        "chunks": 42,
        "chunk_size": 500,
        "embedder": "sentence-transformers",
    }
    documented = {
        "message": "Dataset processing completed",
        "processed_files": 2,
        "skipped_files": 0,
        "failed_files": 0,
        "strategy": "universal_processor",
        "database": "main_db",
        "details": [detail],
    }
    assert_shape(documented, answer.json())
    assert answer.json()["message"] == "Dataset processing completed"
    assert (answer.json()["processed_files"], answer.json()["failed_files"]) == (1, 0)


def test_processing_again_skips_what_is_done(dataset: httpx.Client) -> None:
    answer = dataset.post(f"{PROJECT}/datasets/research_papers/process").json()
    assert (answer["processed_files"], answer["skipped_files"]) == (0, 1)


@pytest.mark.parametrize("strategy", ["vector", "keyword", "hybrid", None])
def test_a_query_finds_the_page(dataset: httpx.Client, strategy: str | None) -> None:
    body = {"query": "When is the audit of the Zephyr laboratory?", "database": "main_db", "top_k": 5}
    answer = dataset.post(f"{PROJECT}/rag/query", json={**body, "retrieval_strategy": strategy})
    assert answer.status_code == 200, answer.text
    result = {"content": "…", "score": 0.92, "metadata": {"document_id": "x", "page": 5}, "chunk_id": "x"}
    documented = {
        "query": "…",
        "results": [{**result, "document_id": "fda_21cfr312"}],
        "total_results": 5,
        "processing_time_ms": 45.2,
        "retrieval_strategy_used": "hybrid",
        "database_used": "main_db",
    }
    assert_shape(documented, answer.json())
    assert answer.json()["retrieval_strategy_used"] == (strategy or "hybrid")
    best, *rest = answer.json()["results"]
    assert "ninth of March" in best["content"]
    assert best["metadata"]["page"] == 2
    scores = [best["score"], *(entry["score"] for entry in rest)]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_score_threshold_top_k_and_filters_are_effective(dataset: httpx.Client) -> None:
    query = {"query": "regulations of clinical trials"}
    everything = dataset.post(f"{PROJECT}/rag/query", json=query).json()["results"]
    assert len(dataset.post(f"{PROJECT}/rag/query", json={**query, "top_k": 1}).json()["results"]) == 1
    best = everything[0]["score"]
    above = dataset.post(f"{PROJECT}/rag/query", json={**query, "score_threshold": best - 1e-6}).json()["results"]
    assert [entry["chunk_id"] for entry in above] == [everything[0]["chunk_id"]]
    filters = {"metadata_filters": {"filename": "paper1.pdf", "page": 1}}
    filtered = dataset.post(f"{PROJECT}/rag/query", json={**query, **filters}).json()["results"]
    assert filtered
    assert {entry["metadata"]["page"] for entry in filtered} == {1}
    hostile = {"metadata_filters": {"filename": 'x" or filename != "y'}}
    assert dataset.post(f"{PROJECT}/rag/query", json={**query, **hostile}).json()["results"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"query": ""},
        {"top_k": 0},
        {"top_k": 1000},
        {"score_threshold": 1.5},
        {"retrieval_strategy": "absent"},
        {"hybrid_alpha": 2},
        {"metadata_filters": {'bad" key': 1}},
        {"max_tokens": 0},
        {"distance_metric": "nonsense"},
        {"rerank_model": "absent/model"},
    ],
    ids=str,
)
def test_wrong_query_fields_are_refused(dataset: httpx.Client, wrong: dict[str, object]) -> None:
    answer = dataset.post(f"{PROJECT}/rag/query", json={"query": "x", **wrong})
    assert answer.status_code in (400, 404, 422), answer.text
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"query": ""}, 422),
        ({"distance_metric": "nonsense"}, 422),
        ({"top_k": 0}, 422),
        ({"retrieval_strategy": "absent"}, 400),
        ({"database": "absent"}, 404),
        ({"rerank_model": "absent"}, 404),
        ({"data_processing_strategy": "absent"}, 400),
    ],
    ids=str,
)
def test_each_wrong_field_has_its_status(dataset: httpx.Client, wrong: dict[str, object], status: int) -> None:
    assert dataset.post(f"{PROJECT}/rag/query", json={"query": "x", **wrong}).status_code == status


def test_an_unknown_database_answers_404(dataset: httpx.Client) -> None:
    answer = dataset.post(f"{PROJECT}/rag/query", json={"query": "x", "database": "absent"})
    assert answer.status_code == 404
    assert "absent" in answer.json()["detail"]


def test_rag_health_counts_documents(dataset: httpx.Client) -> None:
    for query in ("", "?database=main_db"):
        answer = dataset.get(f"{PROJECT}/rag/health{query}").json()
        database = {"name": "main_db", "status": "healthy", "document_count": 150, "size_bytes": 10485760}
        assert_shape({"status": "healthy", "databases": [database]}, answer)
        assert answer["status"] == "healthy"
        assert answer["databases"][0]["document_count"] == 1


def test_chat_uses_the_document_and_returns_its_sources(dataset: httpx.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "When does the audit of the Zephyr laboratory happen?"}],
        "rag_enabled": True,
        "database": "main_db",
        "include_sources": True,
        "temperature": 0,
        "max_tokens": 60,
    }
    answer = dataset.post(f"{PROJECT}/chat/completions", json=body).json()
    assert answer["sources"][0]["metadata"]["page"] == 2
    without = dataset.post(f"{PROJECT}/chat/completions", json={**body, "rag_enabled": False}).json()
    assert not without.get("sources")
    assert answer["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 50


def test_asynchronous_processing_answers_a_task(dataset: httpx.Client) -> None:
    dataset.post(f"{PROJECT}/datasets/research_papers/data", files={"file": ("note.md", b"# Note\n\nLlamas hum.")})
    answer = dataset.post(f"{PROJECT}/datasets/research_papers/process?async_processing=true").json()
    documented = {
        "message": "Dataset processing started asynchronously",
        "processed_files": 0,
        "skipped_files": 0,
        "failed_files": 0,
        "strategy": "universal_processor",
        "database": "main_db",
        "details": [{"hash": "abc123", "filename": None, "status": "pending"}],
        "task_id": "task-123-abc",
    }
    assert_shape(documented, answer)
    for _ in range(300):
        task = dataset.get(f"{PROJECT}/tasks/{answer['task_id']}").json()
        if task["state"] in ("SUCCESS", "FAILURE"):
            break
        time.sleep(0.1)
    shape = {
        "task_id": "x",
        "state": "SUCCESS",
        "meta": {"current": 2, "total": 2},
        "result": {"processed_files": 2, "failed_files": 0},
        "error": None,
        "traceback": None,
    }
    assert_shape(shape, task)
    assert task["state"] == "SUCCESS"
    assert dataset.get(f"{PROJECT}/tasks/task-unknown").status_code == 404


def test_removing_a_file_removes_what_was_found_in_it(dataset: httpx.Client) -> None:
    answer = dataset.delete(f"{PROJECT}/datasets/research_papers/data/{PAPER_HASH}?remove_from_disk=true")
    assert answer.status_code == 200
    assert_shape({"file_hash": "abc123"}, answer.json())
    found = dataset.post(f"{PROJECT}/rag/query", json={"query": "audit of the Zephyr laboratory"}).json()["results"]
    assert not any("Zephyr" in entry["content"] for entry in found)
    assert dataset.delete(f"{PROJECT}/datasets/research_papers/data/{PAPER_HASH}").status_code == 404


def test_delete_dataset_answers_it_and_its_chunks_are_gone(dataset: httpx.Client) -> None:
    answer = dataset.delete(f"{PROJECT}/datasets/research_papers")
    assert answer.status_code == 200
    assert_shape({"dataset": {**DATASET, "files": []}}, answer.json())
    assert dataset.post(f"{PROJECT}/rag/query", json={"query": "llamas"}).json()["results"] == []
    assert dataset.delete(f"{PROJECT}/datasets/research_papers").status_code == 404
