"""LlamaFarm's browser interface, replayed: its requests in its order, from a page of another origin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.clients.farm_designer import Designer, DesignerError, readable
from tests.running_server import RunningServer

NOTES = b"# Notes\n\nThe orchard's oldest pear tree was planted in 1911.\n"
NOTES_HASH = hashlib.sha256(NOTES).hexdigest()


@pytest.fixture(scope="module")
def designer(server: RunningServer) -> Iterator[Designer]:
    """The interface, with a project that it has made."""
    with Designer(server.url, "designer-org", "orchard") as page:
        page.http.delete(page.base)
        made = page.call("POST", "/api/v1/projects/designer-org", json={"name": "orchard", "config_template": "rag"})
        assert made["project"]["namespace"] == "designer-org"
        yield page
        page.http.delete(page.base)


@pytest.fixture(scope="module")
def dataset(designer: Designer) -> str:
    """The path of a dataset with one indexed file."""
    path = f"{designer.base}/datasets"
    strategies = designer.call("GET", f"{path}/strategies")
    body = {
        "name": "notes",
        "data_processing_strategy": strategies["data_processing_strategies"][0],
        "database": strategies["databases"][0],
    }
    assert designer.call("POST", f"{path}/", json=body)["dataset"]["name"] == "notes"
    uploaded = designer.call("POST", f"{path}/notes/data", files={"file": ("notes.md", NOTES, "text/markdown")})
    assert (uploaded["filename"], uploaded["hash"]) == ("notes.md", NOTES_HASH)
    answer = designer.call("POST", f"{path}/notes/process?async_processing=true")
    task = designer.wait_for(answer["task_id"])
    assert task["state"] == "SUCCESS"
    assert [file["state"] for file in task["meta"]["files"]] == ["success"]
    return f"{path}/notes"


@pytest.mark.parametrize("path", ["/api/health", "/health", "/api/health/"])
def test_health_shows_components_and_seeds(designer: Designer, path: str) -> None:
    health = designer.call("GET", path, timeout=5)
    assert health["status"] == "healthy"
    for entry in [*health["components"], *health["seeds"]]:
        assert {"name", "status", "message", "latency_ms"} <= set(entry)
    assert health["components"]
    assert isinstance(health["seeds"], list)


def test_projects_are_listed_read_changed_and_deleted(designer: Designer) -> None:
    projects = "/api/v1/projects/designer-org"
    designer.http.delete(f"{projects}/second")
    config = designer.call("POST", projects, json={"name": "second"})["project"]["config"]
    listed = designer.call("GET", projects)
    assert {"orchard", "second"} <= {project["name"] for project in listed["projects"]}
    assert listed["total"] == len(listed["projects"])
    changed = {**config, "prompts": [{"name": "default", "messages": [{"role": "system", "content": "New."}]}]}
    answer = designer.call("PUT", f"{projects}/second", json={"config": changed})
    assert answer["project"]["config"]["prompts"] == changed["prompts"]
    assert designer.call("GET", f"{projects}/second")["project"]["config"]["prompts"] == changed["prompts"]
    assert designer.call("DELETE", f"{projects}/second")["project"]["name"] == "second"
    with pytest.raises(DesignerError, match=r"^404: .*second"):
        designer.call("GET", f"{projects}/second")


def test_datasets_are_listed_with_their_files(designer: Designer, dataset: str) -> None:
    listed = designer.call("GET", f"{designer.base}/datasets/", params={"include_extra_details": True})
    notes = next(entry for entry in listed["datasets"] if entry["name"] == "notes")
    (file,) = notes["details"]["files_metadata"]
    assert (file["original_file_name"], file["hash"], file["size"]) == ("notes.md", NOTES_HASH, len(NOTES))
    assert file["chunk_count"] > 0


def test_the_process_action_is_followed_to_its_end(designer: Designer, dataset: str) -> None:
    started = designer.call("POST", f"{dataset}/actions", json={"action_type": "process"})
    task = designer.wait_for(started["task_id"])
    assert task["state"] == "SUCCESS"
    assert [file["state"] for file in task["meta"]["files"]] in (["skipped"], ["success"], [])


def test_several_files_are_uploaded_at_once(designer: Designer, dataset: str) -> None:
    sent = [("files", (f"{number}.md", b"# Number %d" % number, "text/markdown")) for number in range(3)]
    uploaded = designer.call("POST", f"{dataset}/data/bulk", files=sent)
    assert (uploaded["uploaded"], uploaded["failed"]) == (3, 0)


def test_a_task_is_cancelled(designer: Designer, dataset: str) -> None:
    started = designer.call("POST", f"{dataset}/process?async_processing=true")
    answer = designer.call("DELETE", f"{designer.base}/tasks/{started['task_id']}")
    assert answer["cancelled"] or answer["already_completed"]
    designer.wait_for(started["task_id"])


def test_models_are_listed(designer: Designer) -> None:
    listed = designer.call("GET", f"{designer.base}/models")
    assert [model["name"] for model in listed["models"] if model["default"]]


def test_a_whole_answer_carries_its_session(designer: Designer, dataset: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
    answer = designer.send("POST", f"{designer.base}/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"]
    session = readable(answer, "x-session-id")
    assert session
    history = designer.call("GET", f"{designer.base}/chat/sessions/{session}/history")
    assert [message["role"] for message in history["messages"]] == ["user", "assistant"]
    designer.call("DELETE", f"{designer.base}/chat/sessions/{session}")


def test_a_stream_begins_with_its_sources_and_ends_in_the_exact_line(designer: Designer, dataset: str) -> None:
    body = {
        "messages": [{"role": "user", "content": "When was the oldest pear tree planted?"}],
        "rag_enabled": True,
        "include_sources": True,
        "max_tokens": 40,
    }
    (first, *rest), session = designer.stream(body, {"X-Session-ID": "designer-1"})
    assert session == "designer-1"
    assert first["type"] == "sources"
    assert {"content", "source", "score", "metadata"} <= set(first["sources"][0])
    assert first["sources"][0]["source"] == "notes.md"
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in rest if chunk["choices"])
    _, none = designer.stream(body, {"X-No-Session": "true"})
    assert not none


def test_a_preview_shows_how_a_file_would_be_parted(designer: Designer, dataset: str) -> None:
    body = {"dataset_id": "notes", "file_hash": NOTES_HASH}
    preview = designer.call("POST", f"{designer.base}/rag/databases/main_db/preview", json=body)
    assert preview["total_chunks"] == len(preview["chunks"]) > 0
    assert preview["chunks"][0]["content"] in preview["original_text"]


def test_examples_are_listed(designer: Designer) -> None:
    for path in ("/api/v1/examples", "/api/v1/examples/"):
        example = next(entry for entry in designer.call("GET", path)["examples"] if entry["id"] == "quickstart_rag")
        assert example["dataset_count"] == 1


def test_the_datasets_of_examples_are_listed(designer: Designer) -> None:
    assert designer.call("GET", "/api/v1/examples/datasets")["datasets"]


def test_an_examples_data_is_imported(designer: Designer) -> None:
    projects = "/api/v1/projects/designer-org"
    designer.http.delete(f"{projects}/imported")
    designer.call("POST", projects, json={"name": "imported"})
    body = {"namespace": "designer-org", "project": "imported", "process": True}
    answer = designer.call("POST", "/api/v1/examples/quickstart_rag/import-data", json=body)
    assert (answer["project"], answer["datasets"]) == ("imported", ["handbook"])
    assert len(answer["task_ids"]) == 1
    designer.call("DELETE", f"{projects}/imported")


def test_pages_for_what_is_not_there_get_a_404_they_can_read(designer: Designer) -> None:
    for path in ("/api/v1/addons", "/api/v1/bundles"):
        with pytest.raises(DesignerError, match=r"^404: "):
            designer.call("GET", path)


def test_refusals_can_be_shown(designer: Designer, dataset: str) -> None:
    with pytest.raises(DesignerError, match=r"^4..: .*no-such"):
        designer.call("POST", f"{designer.base}/datasets/", json={"name": "x", "database": "no-such"})
    with pytest.raises(DesignerError, match=r"^422: .*messages"):
        designer.stream({"messages": []}, {})
    with pytest.raises(DesignerError, match=r"^400: "):
        designer.call("POST", f"{designer.base}/rag/query", json={"query": {"not": "text"}})


def test_a_file_is_deleted(designer: Designer, dataset: str) -> None:
    assert designer.call("DELETE", f"{dataset}/data/{NOTES_HASH}")["file_hash"] == NOTES_HASH
