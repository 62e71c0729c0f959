"""LlamaFarm's command line, replayed: its requests in its order, and an end to the test where its decoder would end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import farm_cli
from tests.clients.farm_cli import CliError, FarmCli
from tests.clients.go_json import ANY, BOOL, INT, STRING, Map, decode
from tests.running_server import RunningServer

ALMANAC = (
    b"# Almanac\n\nThe blue tractor is serviced in the second week of April.\n\n" + b"Oats need rain in June.\n\n" * 30
)
LEDGER = b"# Ledger\n\nThe dairy owes the miller eleven barrels of oil.\n"
ALMANAC_HASH, LEDGER_HASH = (hashlib.sha256(content).hexdigest() for content in (ALMANAC, LEDGER))


@pytest.fixture(scope="module")
def cli(server: RunningServer) -> Iterator[FarmCli]:
    """The command line in a project of its own, made as `lf init` does."""
    with FarmCli(server.url, "cli-org", "almanac") as client:
        client.require_healthy()
        client.http.delete(client.base)
        body = {"name": "almanac", "config_template": "rag"}
        made = client.call("POST", "/v1/projects/cli-org", farm_cli.PROJECT, statuses=(200, 201), json=body)
        assert made["project"]["config"]["name"] == "almanac"
        yield client
        client.http.delete(client.base)


@pytest.fixture(scope="module")
def filled(cli: FarmCli) -> FarmCli:
    """With a dataset `papers` that holds and has indexed a file."""
    created = add_dataset(cli, "papers")
    assert (created["name"], created["files"]) == ("papers", [])
    sent = {"file": ("almanac.md", ALMANAC)}
    uploaded = cli.call(
        "POST", f"{cli.base}/datasets/papers/data", farm_cli.UPLOAD, params={"auto_process": "false"}, files=sent
    )
    assert (uploaded["filename"], uploaded["hash"], uploaded["status"]) == ("almanac.md", ALMANAC_HASH, "uploaded")
    answer = cli.call(
        "POST",
        f"{cli.base}/datasets/papers/process",
        {"task_id": STRING, "message": STRING},
        params={"async_processing": "true"},
    )
    (result,) = cli.wait_for(answer["task_id"])
    assert (result["filename"], result["hash"], result["status"]) == ("almanac.md", ALMANAC_HASH, "processed")
    assert result["chunks"] > 0
    return cli


def add_dataset(cli: FarmCli, name: str) -> dict[str, Any]:
    strategies = cli.call("GET", f"{cli.base}/datasets/strategies", farm_cli.STRATEGIES)
    body = {
        "name": name,
        "data_processing_strategy": strategies["data_processing_strategies"][0],
        "database": strategies["databases"][0],
    }
    created = cli.call("POST", f"{cli.base}/datasets/", {"dataset": farm_cli.DATASET}, json=body)
    return dict(created["dataset"])


def test_the_health_gate_opens_for_every_command(cli: FarmCli) -> None:
    health = cli.require_healthy("rag-service", "universal-runtime")
    assert health["timestamp"] > 1_700_000_000


def test_deploy_makes_an_absent_project_and_updates_a_present_one(server: RunningServer, cli: FarmCli) -> None:
    config = cli.call("GET", cli.base, farm_cli.PROJECT)["project"]["config"]
    prompts = [{"name": "default", "messages": [{"role": "system", "content": "Answer in one sentence."}]}]
    renamed = {**config, "name": "deployed", "prompts": prompts}
    with FarmCli(server.url, "cli-org", "deployed") as deploying:
        for _ in range(2):
            project = deploying.deploy(renamed)["project"]
            assert (project["name"], project["config"]["prompts"]) == ("deployed", prompts)
        # What the new configuration leaves out is gone.
        del renamed["prompts"]
        for model in renamed["runtime"]["models"]:
            model.pop("prompts", None)
        assert "prompts" not in deploying.deploy(renamed)["project"]["config"]
        deploying.call("DELETE", deploying.base, farm_cli.PROJECT)
        with pytest.raises(CliError, match=r"404: .*deployed"):
            deploying.call("GET", deploying.base, farm_cli.PROJECT)


def test_datasets_are_listed_with_and_without_what_is_known_of_their_files(filled: FarmCli) -> None:
    for path in (f"{filled.base}/datasets/", f"{filled.base}/datasets"):
        for extra in ("true", "false"):
            listed = filled.call("GET", path, farm_cli.DATASETS, params={"include_extra_details": extra})
            dataset = next(entry for entry in listed["datasets"] if entry["name"] == "papers")
            assert ALMANAC_HASH in dataset["files"]
            if extra == "true":
                file = next(entry for entry in dataset["details"]["files_metadata"] if entry["hash"] == ALMANAC_HASH)
                assert (file["original_file_name"], file["size"]) == ("almanac.md", len(ALMANAC))


def test_the_same_file_again_is_skipped(filled: FarmCli) -> None:
    sent = {"file": ("copy.md", ALMANAC)}
    uploaded = filled.call("POST", f"{filled.base}/datasets/papers/data", farm_cli.UPLOAD, files=sent)
    assert (uploaded["skipped"], uploaded["status"]) == (True, "skipped")


def test_several_files_are_uploaded_in_one_request(filled: FarmCli) -> None:
    add_dataset(filled, "bulk")
    sent = [("files", ("almanac.md", ALMANAC)), ("files", ("ledger.md", LEDGER)), ("files", ("again.md", LEDGER))]
    path, query = f"{filled.base}/datasets/bulk/data/bulk", {"auto_process": "false"}
    uploaded = filled.call("POST", path, farm_cli.BULK, params=query, files=sent)
    assert (uploaded["uploaded"], uploaded["skipped"], uploaded["failed"]) == (2, 1, 0)
    filled.call("DELETE", f"{filled.base}/datasets/bulk", {"dataset": farm_cli.DATASET})


def test_the_process_action_is_a_task_that_ends_with_each_file(filled: FarmCli) -> None:
    add_dataset(filled, "acted")
    filled.call("POST", f"{filled.base}/datasets/acted/data", farm_cli.UPLOAD, files={"file": ("ledger.md", LEDGER)})
    actions = f"{filled.base}/datasets/acted/actions"
    started = filled.call("POST", actions, farm_cli.ACTION, json={"action_type": "process"})
    assert started["task_uri"].endswith(f"/tasks/{started['task_id']}")
    assert decode(filled.http.get(started["task_uri"]).text, farm_cli.TASK)["task_id"] == started["task_id"]
    (result,) = filled.wait_for(started["task_id"])
    assert (result["filename"], result["status"]) == ("ledger.md", "processed")


def test_the_chunks_of_a_file_and_of_a_dataset_are_deleted_by_an_action(filled: FarmCli) -> None:
    add_dataset(filled, "cleared")
    for name, content in (("ledger.md", LEDGER), ("other.md", b"# Other\n\nNothing of the kind.\n")):
        filled.call("POST", f"{filled.base}/datasets/cleared/data", farm_cli.UPLOAD, files={"file": (name, content)})
    filled.call("POST", f"{filled.base}/datasets/cleared/process", {"processed_files": INT})
    actions = f"{filled.base}/datasets/cleared/actions"
    of_file = {"message": STRING, "file_hash": STRING, "deleted_chunks": INT}
    body = {"action_type": "delete_file_chunks", "file_hash": LEDGER_HASH}
    deleted = filled.call("POST", actions, of_file, json=body)
    assert (deleted["file_hash"], deleted["deleted_chunks"]) == (LEDGER_HASH, 1)
    of_dataset = {"message": STRING, "total_deleted_chunks": INT, "total_files_cleared": INT, "total_files_failed": INT}
    deleted = filled.call("POST", actions, of_dataset, json={"action_type": "delete_dataset_chunks"})
    assert (deleted["total_deleted_chunks"], deleted["total_files_failed"]) == (1, 0)
    filled.call("DELETE", f"{filled.base}/datasets/cleared", {"dataset": farm_cli.DATASET})


def test_a_task_can_be_cancelled_and_says_when_it_had_ended(filled: FarmCli) -> None:
    query = {"async_processing": "true"}
    started = filled.call("POST", f"{filled.base}/datasets/papers/process", {"task_id": STRING}, params=query)
    filled.wait_for(started["task_id"])
    kind = {
        "message": STRING,
        "task_id": STRING,
        "cancelled": BOOL,
        "pending_tasks_cancelled": INT,
        "running_tasks_at_cancel": INT,
        "files_reverted": INT,
        "files_failed_to_revert": INT,
        "already_completed": BOOL,
        "already_cancelled": BOOL,
    }
    cancelled = filled.call("DELETE", f"{filled.base}/tasks/{started['task_id']}", kind)
    assert (cancelled["cancelled"], cancelled["already_completed"]) == (False, True)


def test_models_are_listed(cli: FarmCli) -> None:
    listed = cli.call("GET", f"{cli.base}/models", farm_cli.MODELS)
    assert listed["total"] == len(listed["models"]) > 0
    assert [model["default"] for model in listed["models"]].count(True) == 1


def test_databases_are_listed(cli: FarmCli) -> None:
    listed = cli.call("GET", f"{cli.base}/rag/databases", farm_cli.DATABASES)
    names = [database["name"] for database in listed["databases"]]
    assert listed["default_database"] in names
    for database in listed["databases"]:
        assert database["is_default"] == (database["name"] == listed["default_database"])
        assert [entry["is_default"] for entry in database["retrieval_strategies"]].count(True) <= 1


def test_a_query_finds_what_was_indexed(filled: FarmCli) -> None:
    body = {"query": "When is the blue tractor serviced?", "top_k": 3, "score_threshold": 0.1}
    found = filled.call("POST", f"{filled.base}/rag/query", farm_cli.QUERY, json=body)
    assert "second week of April" in found["results"][0]["content"]
    assert found["total_results"] == len(found["results"]) <= 3


def test_the_databases_health_is_told_with_times(filled: FarmCli) -> None:
    for query in ({}, {"database": "main_db"}):
        health = filled.call("GET", f"{filled.base}/rag/health", farm_cli.RAG_HEALTH, params=query)
        assert (health["status"], health["database"]) == ("healthy", "main_db")
        assert health["components"]
        assert health["last_check"]


def test_a_databases_statistics_count_what_it_holds(filled: FarmCli) -> None:
    stats = filled.call("GET", f"{filled.base}/rag/stats", farm_cli.RAG_STATS, params={"database": "main_db"})
    assert stats["database"] == "main_db"
    assert stats["document_count"] >= 1
    assert stats["vector_count"] == stats["chunk_count"] >= stats["document_count"]
    assert stats["embedding_dimension"] == 384
    assert stats["last_updated"]


def test_a_databases_documents_are_listed(filled: FarmCli) -> None:
    path = f"{filled.base}/rag/databases/main_db/documents"
    documents = filled.call("GET", path, farm_cli.DOCUMENTS, params={"limit": 50, "offset": 0})
    almanac = next(document for document in documents if document["id"] == ALMANAC_HASH)
    assert (almanac["filename"], almanac["size_bytes"]) == ("almanac.md", len(ALMANAC))
    assert almanac["chunk_count"] > 0
    assert almanac["date_ingested"]
    assert filled.call("GET", path, farm_cli.DOCUMENTS, params={"limit": 1, "offset": len(documents)}) == []


def test_the_chunks_of_a_file_are_shown_before_it_is_indexed(filled: FarmCli) -> None:
    kind = {
        "original_text": STRING,
        "chunks": [
            {"chunk_index": INT, "content": STRING, "start_position": INT, "end_position": INT, "char_count": INT}
        ],
        "filename": STRING,
        "size_bytes": INT,
        "total_chunks": INT,
        "warnings": [STRING],
    }
    body = {"dataset_id": "papers", "file_hash": ALMANAC_HASH, "chunk_size": 200, "chunk_overlap": 20}
    preview = filled.call("POST", f"{filled.base}/rag/databases/main_db/preview", kind, json=body)
    assert preview["total_chunks"] == len(preview["chunks"]) > 1
    assert "blue tractor" in preview["chunks"][0]["content"]


HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}


def test_chats_stream_within_a_session_that_keeps_its_history(cli: FarmCli) -> None:
    text, session = cli.stream(HELLO, {})
    assert text
    assert session
    again, same = cli.stream(HELLO, {"X-Session-ID": session, "X-Active-Project": "cli-org/almanac"})
    assert same == session
    history = cli.call("GET", f"{cli.base}/chat/sessions/{session}/history", farm_cli.HISTORY, timeout=10)
    assert [message["role"] for message in history["messages"]] == ["user", "assistant"] * 2
    assert [message["content"] for message in history["messages"]][1::2] == [text, again]
    cli.call("DELETE", f"{cli.base}/chat/sessions/{session}", {"message": STRING})
    empty = cli.call("GET", f"{cli.base}/chat/sessions/{session}/history", farm_cli.HISTORY)
    assert empty["messages"] == []


def test_a_chat_without_a_session_leaves_none(cli: FarmCli) -> None:
    cli.call("DELETE", f"{cli.base}/chat/sessions", {"message": STRING, "count": INT})
    text, session = cli.stream(HELLO, {"X-No-Session": "true"})
    assert (bool(text), session) == (True, "")
    deleted = cli.call("DELETE", f"{cli.base}/chat/sessions", {"message": STRING, "count": INT})
    assert deleted["count"] == 0


def test_a_whole_answer_holds_one_message(cli: FarmCli) -> None:
    body = {**HELLO, "rag_enabled": False, "max_tokens": 8}
    completion = cli.call("POST", f"{cli.base}/chat/completions", farm_cli.COMPLETION, json=body)
    assert completion["choices"][0]["message"]["content"]


def test_refusals_read_as_sentences(cli: FarmCli) -> None:
    with pytest.raises(CliError, match="messages"):
        cli.stream({"messages": []}, {})
    with pytest.raises(CliError, match=r"^404: .*absent"):
        cli.call("GET", "/v1/projects/cli-org/absent/datasets", farm_cli.DATASETS)
    with pytest.raises(CliError, match=r"^4..: .*absent"):
        cli.call("POST", f"{cli.base}/datasets/", Map(ANY), json={"name": "x", "database": "absent"})
    with pytest.raises(CliError, match=r"^404: .*absent"):
        cli.call("DELETE", f"{cli.base}/datasets/absent", Map(ANY))


def test_files_and_datasets_are_deleted(filled: FarmCli) -> None:
    add_dataset(filled, "short")
    filled.call("POST", f"{filled.base}/datasets/short/data", farm_cli.UPLOAD, files={"file": ("ledger.md", LEDGER)})
    path = f"{filled.base}/datasets/short/data/{LEDGER_HASH}"
    assert filled.call("DELETE", path, {"file_hash": STRING, "deleted_chunks": INT})["file_hash"] == LEDGER_HASH
    assert (
        filled.call("DELETE", f"{filled.base}/datasets/short", {"dataset": farm_cli.DATASET})["dataset"]["name"]
        == "short"
    )


def test_the_version_check_answers_without_a_network(cli: FarmCli) -> None:
    answer = cli.http.get("/v1/system/version-check")
    assert answer.status_code in (200, 503)
    if answer.status_code == 503:
        assert farm_cli.error_text(answer.text)


@pytest.mark.parametrize(
    "details",
    [
        [{"hash": "a", "filename": "f", "status": "processed", "chunks": 2.0, "extractors": []}],
        [[True, {"file_hash": "a", "filename": None, "status": "processed", "result": {"filename": "f"}}]],
    ],
)
def test_both_forms_of_a_tasks_details_are_read(details: list[Any]) -> None:
    for result in ({"details": details}, details):
        (file,) = farm_cli.file_results(result)
        assert (file["hash"], file["filename"], file["status"]) == ("a", "f", "processed")
