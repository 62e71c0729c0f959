"""LlamaFarm's document, section "Projects API"."""

from __future__ import annotations

import httpx
import pytest

from tests.contract.shape import assert_shape

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


@pytest.mark.parametrize("template", ["default", "server", "rag"])
def test_each_template_makes_a_project(http: httpx.Client, template: str) -> None:
    name = f"from-{template}"
    http.delete(f"/v1/projects/my-org/{name}")
    answer = http.post("/v1/projects/my-org", json={"name": name, "config_template": template})
    assert answer.status_code == 200, answer.text
    assert bool(answer.json()["project"]["config"].get("rag", {}).get("databases")) == (template in ("server", "rag"))


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
