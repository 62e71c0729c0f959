"""LlamaFarm's document, section "Projects API"."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.domain.names import ProjectRef
from tests.contract.shape import assert_shape
from tests.running_server import RunningServer

PROJECT = {
    "namespace": "my-org",
    "name": "chatbot",
    "config": {"version": "v1", "name": "chatbot", "namespace": "my-org", "runtime": {}},
}


@pytest.fixture
def project(http: httpx.Client) -> str:
    http.delete("/v1/projects/my-org/chatbot")
    created = http.post("/v1/projects/my-org", json={"name": "chatbot", "config_template": "server"})
    assert created.status_code == 200, created.text
    return "/v1/projects/my-org/chatbot"


def test_create_project_answers_the_project_with_its_config(http: httpx.Client) -> None:
    http.delete("/v1/projects/my-org/my-new-project")
    answer = http.post("/v1/projects/my-org", json={"name": "my-new-project", "config_template": "server"})
    assert answer.status_code == 200
    assert_shape({"project": PROJECT}, answer.json())
    assert answer.json()["project"]["name"] == "my-new-project"


@pytest.mark.parametrize("template", ["default", "server", "rag", "advanced"])
def test_each_template_makes_a_project(http: httpx.Client, template: str) -> None:
    name = f"from-{template}"
    http.delete(f"/v1/projects/my-org/{name}")
    answer = http.post("/v1/projects/my-org", json={"name": name, "config_template": template})
    assert answer.status_code == 200, answer.text
    assert bool(answer.json()["project"]["config"].get("rag", {}).get("databases")) == (template != "default")


def test_list_projects_answers_total_and_projects(http: httpx.Client, project: str) -> None:
    answer = http.get("/v1/projects/my-org").json()
    assert_shape({"total": 2, "projects": [PROJECT]}, answer)
    assert answer["total"] == len(answer["projects"])


def test_an_unknown_namespace_lists_empty(http: httpx.Client) -> None:
    answer = http.get("/v1/projects/nobody-here")
    assert (answer.status_code, answer.json()) == (200, {"total": 0, "projects": []})


def test_get_project_answers_it(http: httpx.Client, project: str) -> None:
    answer = http.get(project)
    assert answer.status_code == 200
    assert_shape({"project": PROJECT}, answer.json())


def test_update_project_replaces_the_config(http: httpx.Client, project: str) -> None:
    config = {
        "version": "v1",
        "name": "chatbot",
        "namespace": "my-org",
        "runtime": {"provider": "ollama", "model": "llama3.2:3b"},
        "prompts": [{"role": "system", "content": "Be brief."}],
    }
    answer = http.put(project, json={"config": config})
    assert answer.status_code == 200, answer.text
    assert answer.json()["project"]["config"] == config
    del config["prompts"]
    assert http.put(project, json={"config": config}).json()["project"]["config"] == config
    assert http.get(project).json()["project"]["config"] == config


def test_an_invalid_config_is_refused_whole_naming_the_field(http: httpx.Client, project: str) -> None:
    before = http.get(project).json()
    answer = http.put(project, json={"config": {**before["project"]["config"], "runtime": {"models": [{"name": "x"}]}}})
    assert answer.status_code == 422
    assert "runtime.models.0.model" in answer.json()["detail"]
    assert http.get(project).json() == before


def test_delete_project_answers_it_and_deletes_it(http: httpx.Client, project: str) -> None:
    answer = http.delete(project)
    assert answer.status_code == 200
    assert_shape({"project": PROJECT}, answer.json())
    assert http.get(project).status_code == 404


def test_a_taken_name_answers_409(http: httpx.Client, project: str) -> None:
    answer = http.post("/v1/projects/my-org", json={"name": "chatbot"})
    assert answer.status_code == 409
    assert_shape({"detail": "…", "error": {"message": "…", "type": "…", "code": "…"}}, answer.json())


def test_an_unknown_project_answers_404(http: httpx.Client) -> None:
    answer = http.get("/v1/projects/my-org/absent")
    assert answer.status_code == 404
    assert "my-org/absent" in answer.json()["detail"]


def test_an_unknown_template_answers_404_naming_the_templates(http: httpx.Client) -> None:
    answer = http.post("/v1/projects/my-org", json={"name": "x", "config_template": "absent"})
    assert answer.status_code == 404
    assert "server" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["a%2F..%2Fb", "..%2fb", "con", "a%00b", "a" * 300, "-dash", "é"])
def test_hostile_names_are_refused(http: httpx.Client, name: str) -> None:
    for path in (f"/v1/projects/{name}/x", f"/v1/projects/x/{name}", f"/v1/projects/my-org/{name}/datasets"):
        answer = http.get(path)
        assert answer.status_code in (400, 404), answer.text
        assert "detail" in answer.json()


@pytest.mark.parametrize("name", ["../evil", "a/b", "", " ", "a\x00b", ".hidden", "nul"])
def test_hostile_project_names_in_bodies_are_refused(http: httpx.Client, name: str) -> None:
    answer = http.post("/v1/projects/my-org", json={"name": name})
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize("dots", ["..", "%2e%2e"])
def test_dot_segments_are_never_taken_for_a_name(http: httpx.Client, dots: str) -> None:
    answer = http.get(f"/v1/projects/nobody-here/{dots}/{dots}/{dots}/info")
    assert answer.json() == http.get("/info").json() or answer.status_code in (400, 404)
    assert http.delete(f"/v1/projects/default/quickstart/chat/sessions/{dots}").status_code in (400, 404, 405)
    assert http.get("/v1/projects/default/quickstart").status_code == 200


@pytest.mark.parametrize("path", ["/v1/projects/%ff", "/v1/projects/default/quickstart/tasks/%ff"])
def test_names_that_are_no_text_are_the_callers_error(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 400
    assert "UTF-8" in answer.json()["detail"]


def test_a_configuration_nested_too_deeply_is_refused(http: httpx.Client, project: str) -> None:
    deep: object = 1
    for _ in range(95):
        deep = {"a": deep}
    answer = http.put(project, json={"config": {"deep": deep}})
    assert answer.status_code == 400
    assert "google" not in answer.text


@pytest.fixture
def own_template(server: RunningServer) -> Iterator[Path]:
    path = server.data_dir / "templates" / "desk.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("runtime: {model: '${model}'}\nprompts: [{content: 'You are the desk of ${namespace}.'}]\n")
    yield path
    path.unlink()


def test_a_custom_template_is_used(http: httpx.Client, own_template: Path) -> None:
    http.delete("/v1/projects/my-org/from-desk")
    answer = http.post("/v1/projects/my-org", json={"name": "from-desk", "config_template": "desk"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["project"]["config"]["prompts"] == [{"content": "You are the desk of my-org."}]
    own_template.write_text("runtime: {}\n")
    answer = http.post("/v1/projects/my-org", json={"name": "another", "config_template": "desk"})
    assert answer.status_code == 409
    assert "'desk' is wrong" in answer.json()["detail"]
    assert http.get("/v1/projects/my-org/another").status_code == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"runtime": {"model": "x", "provider": "magic"}}, "runtime.provider"),
        ({"runtime": {"model": "x", "base_url": "localhost"}}, "runtime.base_url"),
        ({"runtime": {"model": "x", "model_api_parameters": {"temperature": 9}}}, "runtime.model_api_parameters"),
        ({"prompts": [{"role": "judge", "content": "x"}]}, "prompts.0.role"),
        ({"datasets": [{"name": "a", "database": "absent"}]}, "datasets.0.database"),
        ({"mcp": {"servers": [{"name": "x", "transport": "http"}]}}, "mcp.servers.0"),
        ({"version": 2}, "version"),
    ],
)
def test_each_wrong_field_is_named(http: httpx.Client, project: str, change: dict[str, Any], field: str) -> None:
    before = http.get(project).json()
    answer = http.put(project, json={"config": {**before["project"]["config"], **change}})
    assert answer.status_code == 422
    assert field in answer.json()["detail"]
    assert any(name.startswith(field) for name in answer.json()["error"]["details"])
    assert http.get(project).json() == before


def test_a_configuration_of_another_project_is_refused(http: httpx.Client, project: str) -> None:
    config = http.get(project).json()["project"]["config"]
    answer = http.put(project, json={"config": {**config, "name": "other"}})
    assert answer.status_code == 400
    assert "my-org/chatbot" in answer.json()["detail"]
    assert http.put(project, json={}).status_code == 422
    assert http.put("/v1/projects/my-org/absent", json={"config": config}).status_code == 404


def test_a_dataset_with_files_can_not_be_left_out(http: httpx.Client, project: str) -> None:
    empty = http.get(project).json()["project"]["config"]
    assert http.post(f"{project}/datasets", json={"name": "papers", "database": "main_db"}).status_code == 200
    file = http.post(f"{project}/datasets/papers/data", files={"file": ("a.txt", b"Kept.")}).json()
    before = http.get(project).json()
    answer = http.put(project, json={"config": empty})
    assert answer.status_code == 409
    assert "papers" in answer.json()["detail"]
    assert http.get(project).json() == before
    assert http.delete(f"{project}/datasets/papers/data/{file['hash']}").status_code == 200
    assert http.put(project, json={"config": empty}).json()["project"]["config"] == empty


def test_a_file_broken_by_hand_is_shown_and_harms_nobody_else(
    http: httpx.Client, server: RunningServer, project: str
) -> None:
    http.delete("/v1/projects/my-org/neighbour")
    assert http.post("/v1/projects/my-org", json={"name": "neighbour"}).status_code == 200
    path = server.data_dir / "projects" / "my-org" / "chatbot" / "llamafarm.yaml"
    good = path.read_text()
    for text, reason in {
        "runtime: [": "not valid YAML",
        "version: v1\nname: chatbot\nnamespace: my-org\nruntime: {provider: magic, model: x}\n": "runtime.provider",
    }.items():
        path.write_text(text)
        shown = http.get(project).json()["project"]
        assert reason in shown["validation_error"]
        assert shown["last_modified"]
        listed = {entry["name"]: entry for entry in http.get("/v1/projects/my-org").json()["projects"]}
        assert reason in listed["chatbot"]["validation_error"]
        assert "validation_error" not in listed["neighbour"]
        for answer in (
            http.get(f"{project}/datasets"),
            http.post(f"{project}/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}),
        ):
            assert answer.status_code == 409
            assert reason in answer.json()["detail"]
        assert http.get("/v1/projects/my-org/neighbour/datasets").status_code == 200
    path.write_text(good)
    assert "validation_error" not in http.get(project).json()["project"]


def test_concurrent_replacements_leave_one_of_them_whole(http: httpx.Client, project: str) -> None:
    base = http.get(project).json()["project"]["config"]
    configs = [{**base, "prompts": [{"role": "system", "content": f"{number}" * 500}] * 5} for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda config: http.put(project, json={"config": config}), configs))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert [answer.json()["project"]["config"] for answer in answers] == configs
    assert http.get(project).json()["project"]["config"] in configs


def test_concurrent_datasets_are_all_kept(http: httpx.Client, project: str) -> None:
    def create(number: int) -> int:
        body = {"name": f"d{number % 12}", "database": "main_db", "data_processing_strategy": "universal_processor"}
        return http.post(f"{project}/datasets", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(create, range(24)))
    assert statuses == [200] * 12 + [409] * 12
    names = {dataset["name"] for dataset in http.get(f"{project}/datasets").json()["datasets"]}
    assert names == {f"d{number}" for number in range(12)}


def test_of_concurrent_creations_one_wins(http: httpx.Client) -> None:
    http.delete("/v1/projects/my-org/wanted")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/projects/my-org", json={"name": "wanted"}), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7


def traces(data_dir: Path, name: str) -> list[str]:
    """Tables of the server's database with rows of a project, and folders of its name."""
    found = []
    with closing(sqlite3.connect(f"file:{data_dir / 'llamastead.db'}?mode=ro", uri=True)) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            if "project" in columns:
                query = f"SELECT count(*) FROM {table} WHERE namespace = 'my-org' AND project = ?"
                found += [table] * bool(database.execute(query, (name,)).fetchone()[0])
    return found + [str(path) for path in data_dir.glob(f"projects/**/{name}*")]


def test_deleting_a_project_deletes_all_of_it_everywhere(tmp_path: Path) -> None:
    server = RunningServer(tmp_path).start()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            left = fill_and_delete(http, server)
    finally:
        server.stop()
    assert left == 0
    assert asyncio.run(vectors_of(server.data_dir)) == 0


def fill_and_delete(http: httpx.Client, server: RunningServer) -> int:
    """Fills a project with all a project can hold, deletes it, looks everywhere, and makes it anew."""
    project = "/v1/projects/my-org/doomed"
    create = {"name": "doomed", "config_template": "rag"}
    assert http.post("/v1/projects/my-org", json=create).status_code == 200
    assert http.post(f"{project}/datasets", json={"name": "papers", "database": "main_db"}).status_code == 200
    text = b"The treasure lies under the third oak."
    file = http.post(f"{project}/datasets/papers/data", files={"file": ("map.txt", text)}).json()["hash"]
    task = http.post(f"{project}/datasets/papers/process", params={"async_processing": True}).json()["task_id"]
    while http.get(f"{project}/tasks/{task}").json()["state"] not in ("SUCCESS", "FAILURE"):
        time.sleep(0.1)
    query = {"query": "Where does the treasure lie?"}
    assert http.post(f"{project}/rag/query", json=query).json()["total_results"] == 1
    chat = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
    answer = http.post(f"{project}/chat/completions", json=chat, headers={"X-Session-ID": "diary"})
    assert answer.status_code == 200, answer.text
    found = traces(server.data_dir, "doomed")
    assert {"files", "chunks", "sessions", "tasks"} <= set(found)
    assert http.get(f"{project}/rag/health").json()["databases"][0]["chunk_count"] == 1

    assert http.delete(project).status_code == 200
    assert traces(server.data_dir, "doomed") == []
    assert not [path for path in server.data_dir.rglob("*") if file in path.name]
    for path in ("", "/datasets", f"/tasks/{task}", "/chat/sessions/diary/history", "/rag/health"):
        assert http.get(project + path).status_code == 404, path
    assert http.delete(project).status_code == 404

    assert http.post("/v1/projects/my-org", json=create).status_code == 200
    assert http.get(f"{project}/datasets").json()["total"] == 0
    assert http.get(f"{project}/tasks/{task}").status_code == 404
    assert http.get(f"{project}/chat/sessions/diary/history").json()["messages"] == []
    assert http.post(f"{project}/rag/query", json=query).json()["results"] == []
    count: int = http.get(f"{project}/rag/health").json()["databases"][0]["chunk_count"]
    return count


def test_a_dataset_taken_out_by_hand_is_named_and_can_be_deleted_or_brought_back(
    http: httpx.Client, server: RunningServer
) -> None:
    project = "/v1/projects/my-org/by-hand"
    http.post("/v1/projects/my-org", json={"name": "by-hand", "config_template": "rag"})
    for name in ("kept", "dropped"):
        assert http.post(f"{project}/datasets", json={"name": name, "database": "main_db"}).status_code == 200
        files = {"file": (f"{name}.txt", f"The treasure called {name} lies under the oak.".encode())}
        assert http.post(f"{project}/datasets/{name}/data", files=files).status_code == 200
        assert http.post(f"{project}/datasets/{name}/process").json()["processed_files"] == 1
    path = server.data_dir / "projects" / "my-org" / "by-hand" / "llamafarm.yaml"
    whole = path.read_text()
    config = yaml.safe_load(whole)
    config["datasets"] = [dataset for dataset in config["datasets"] if dataset["name"] != "dropped"]
    path.write_text(yaml.safe_dump(config))

    def sources() -> list[str]:
        found = http.post(f"{project}/rag/query", json={"query": "treasure"}).json()["results"]
        return sorted(result["metadata"]["source"] for result in found)

    assert sources() == ["kept.txt"]
    health = http.get(f"{project}/rag/health").json()
    assert health["hidden_datasets"] == [{"name": "dropped", "file_count": 1}]
    assert any("'dropped'" in issue for issue in health["issues"])
    assert health["databases"][0]["document_count"] == health["databases"][0]["chunk_count"] == 1
    # Such a dataset does not stand in the way of other changes.
    assert http.put(project, json={"config": config}).status_code == 200
    path.write_text(whole)
    assert sources() == ["dropped.txt", "kept.txt"]
    path.write_text(yaml.safe_dump(config))
    deleted = http.delete(f"{project}/datasets/dropped")
    assert (deleted.status_code, deleted.json()["dataset"]["name"]) == (200, "dropped")
    assert http.get(f"{project}/rag/health").json()["hidden_datasets"] == []
    assert http.delete(f"{project}/datasets/dropped").status_code == 404
    path.write_text(whole)
    assert sources() == ["kept.txt"]


async def vectors_of(data_dir: Path) -> int:
    """What the vector store itself holds of the project, asked when the server has let go of it."""
    async with MilvusStore.embedded(data_dir) as store:
        return await store.count(ProjectRef("my-org", "doomed"), "main_db")
