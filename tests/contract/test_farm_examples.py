"""LlamaFarm's document, section "Examples API", and what its Designer asks of examples beside it."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from llamastead.v1 import example_pb2, example_pb2_grpc
from tests.contract.shape import assert_shape
from tests.running_server import RunningServer

ON_BOARD = Path(__file__).parents[2] / "examples"
EXAMPLE = {
    "id": "fda_rag",
    "slug": "fda_rag",
    "title": "FDA RAG Example",
    "description": "Example using FDA warning letters",
    "primaryModel": "llama3.2:3b",
    "tags": ["rag", "healthcare"],
    "dataset_count": 1,
    "data_size_bytes": 2097152,
    "data_size_human": "2.0MB",
    "project_size_bytes": 4096,
    "project_size_human": "4.0KB",
    "updated_at": "2024-01-15T10:30:00",
}
DATASET = {
    "example_id": "fda_rag",
    "example_title": "FDA RAG Example",
    "name": "fda_letters",
    "strategy": "pdf_ingest",
    "database": "fda_db",
    "ingest": ["files/*"],
    "size_bytes": 2097152,
    "size_human": "2.0MB",
}
QUESTIONS = {
    "quickstart_rag": ("Who is the first aider on duty?", "safety_guide.pdf", 5),
    "mixed_format_rag": ("Which chargers are recalled?", "recall.eml", 8),
    "many_small_files_rag": ("The magnet of the speed sensor had turned away", "ticket_1003.md", 32),
    "us_amendments": ("poll tax in primary elections", "amendments_22_to_27.md", 4),
}
KINDS = {
    "How long is the frame guaranteed?": "warranty.docx",
    "What does the Wren folding bicycle cost in euros?": "prices.xlsx",
    "Where will a new store open in September?": "overview.pptx",
    "Who is the manager of the store in Bologna?": "stores.csv",
    "Which thread has the left pedal?": "assembly.html",
    "How many kilometres does a belt last?": "maintenance.md",
    "What does the error code E33 mean?": "manual.pdf",
    "Who signed the mail on product safety?": "recall.eml",
}


@pytest.fixture
def project(http: httpx.Client) -> str:
    http.delete("/v1/projects/my-org/my-project")
    made = http.post("/v1/projects/my-org", json={"name": "my-project", "config_template": "rag"})
    assert made.status_code == 200, made.text
    return "/v1/projects/my-org/my-project"


def finished(http: httpx.Client, project: str, task_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 100
    while True:
        task: dict[str, Any] = http.get(f"{project}/tasks/{task_id}").json()
        if task["state"] in ("SUCCESS", "FAILURE"):
            return task
        assert time.monotonic() < deadline, task
        time.sleep(0.1)


def best(http: httpx.Client, project: str, question: str) -> str:
    answer = http.post(f"{project}/rag/query", json={"query": question})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["results"][0]["metadata"]["filename"])


@pytest.mark.parametrize("path", ["/v1/examples", "/v1/examples/", "/api/v1/examples"])
def test_list_examples(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert_shape({"examples": [EXAMPLE]}, answer.json())
    assert {entry["id"] for entry in answer.json()["examples"]} == set(QUESTIONS)


def test_sizes_and_times_are_the_files_own(http: httpx.Client) -> None:
    for entry in http.get("/v1/examples").json()["examples"]:
        files = [path.stat() for path in (ON_BOARD / entry["id"] / "files").iterdir()]
        assert entry["data_size_bytes"] == sum(file.st_size for file in files)
        assert datetime.fromisoformat(entry["updated_at"]).timestamp() >= max(int(file.st_mtime) for file in files)


@pytest.mark.parametrize("example_id", QUESTIONS)
def test_every_example_imports_and_answers_with_the_right_document_on_top(http: httpx.Client, example_id: str) -> None:
    question, document, files = QUESTIONS[example_id]
    project = f"/v1/projects/my-org/{example_id}"
    http.delete(project)
    body = {"namespace": "my-org", "name": example_id, "process": True}
    answer = http.post(f"/v1/examples/{example_id}/import-project", json=body)
    assert answer.status_code == 200, answer.text
    documented = {"project": "x", "namespace": "my-org", "datasets": ["fda_letters"], "task_ids": ["task-123-abc"]}
    assert_shape(documented, answer.json())
    for task_id in answer.json()["task_ids"]:
        task = finished(http, project, task_id)
        assert task["state"] == "SUCCESS", task
        assert (task["result"]["processed_files"], task["result"]["failed_files"]) == (files, 0)
    assert best(http, project, question) == document
    assert http.post(f"/v1/examples/{example_id}/import-project", json=body).status_code == 409
    if example_id == "mixed_format_rag":
        assert {asked: best(http, project, asked) for asked in KINDS} == KINDS
    assert http.delete(project).status_code == 200


def test_a_project_can_be_imported_without_processing(http: httpx.Client) -> None:
    http.delete("/v1/projects/my-org/unprocessed")
    body = {"namespace": "my-org", "name": "unprocessed", "process": False}
    answer = http.post("/api/v1/examples/quickstart_rag/import-project", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["task_ids"] == []
    (dataset,) = http.get("/v1/projects/my-org/unprocessed/datasets").json()["datasets"]
    assert len(dataset["files"]) == 5
    http.delete("/v1/projects/my-org/unprocessed")


def test_import_data_into_an_existing_project(http: httpx.Client, project: str) -> None:
    body = {"namespace": "my-org", "project": "my-project", "include_strategies": True, "process": True}
    answer = http.post("/v1/examples/us_amendments/import-data", json=body)
    assert answer.status_code == 200, answer.text
    documented = {"project": "x", "namespace": "my-org", "datasets": ["fda_letters"], "task_ids": ["task-456-def"]}
    assert_shape(documented, answer.json())
    (task_id,) = answer.json()["task_ids"]
    assert finished(http, project, task_id)["result"]["failed_files"] == 0
    query = {"query": "cruel and unusual punishments", "database": "constitution_db"}
    found = http.post(f"{project}/rag/query", json=query).json()["results"]
    assert found[0]["metadata"]["filename"] == "bill_of_rights.md"
    again = http.post("/v1/examples/us_amendments/import-data", json=body)
    assert again.status_code == 200, again.text
    result = finished(http, project, again.json()["task_ids"][0])["result"]
    assert (result["processed_files"], result["skipped_files"]) == (0, 4)


def test_a_conflict_answers_409_and_changes_nothing(http: httpx.Client, project: str) -> None:
    config = http.get(project).json()["project"]["config"]
    config["rag"]["databases"].append({"name": "constitution_db", "type": "ChromaStore"})
    assert http.put(project, json={"config": config}).status_code == 200
    body = {"namespace": "my-org", "project": "my-project"}
    answer = http.post("/v1/examples/us_amendments/import-data", json=body)
    assert answer.status_code == 409
    assert "constitution_db" in answer.json()["detail"]
    assert http.get(project).json()["project"]["config"] == config


def test_what_is_not_included_must_be_configured(http: httpx.Client, project: str) -> None:
    body = {"namespace": "my-org", "project": "my-project", "include_strategies": False}
    answer = http.post("/v1/examples/us_amendments/import-data", json=body)
    assert answer.status_code == 400
    assert "constitution_db" in answer.json()["detail"]


def test_datasets_of_examples_are_listed(http: httpx.Client) -> None:
    answer = http.get("/v1/examples/datasets")
    assert answer.status_code == 200
    assert_shape({"datasets": [DATASET]}, answer.json())
    assert {entry["example_id"] for entry in answer.json()["datasets"]} == set(QUESTIONS)
    one = http.get("/api/v1/examples/us_amendments/datasets").json()
    assert [(entry["name"], entry["kind"], entry["file_count"]) for entry in one["datasets"]] == [
        ("amendments", "markdown", 4)
    ]


def test_import_dataset_adds_one_under_another_name(http: httpx.Client, project: str) -> None:
    body = {
        "namespace": "my-org",
        "project": "my-project",
        "dataset": "handbook",
        "target_dataset": "rules",
        "include_strategies": True,
        "process": True,
    }
    answer = http.post("/v1/examples/quickstart_rag/import-dataset", json=body)
    assert answer.status_code == 200, answer.text
    assert_shape({"project": "x", "namespace": "x", "dataset": "rules", "file_count": 3, "task_id": "x"}, answer.json())
    assert finished(http, project, answer.json()["task_id"])["result"]["failed_files"] == 0
    # The database of the template has the same name and stores alike, so it is used as it is.
    assert best(http, project, "When does the barn gate close?") == "visiting.md"
    missing = http.post("/v1/examples/quickstart_rag/import-dataset", json={**body, "dataset": "absent"})
    assert missing.status_code == 404
    assert "handbook" in missing.json()["detail"]


@pytest.mark.parametrize("example_id", ["absent", "..%2fquickstart_rag", "%2e%2e", "quickstart_rag%00"])
def test_an_unknown_example_answers_404(http: httpx.Client, example_id: str, project: str) -> None:
    bodies = {
        "import-project": {"namespace": "my-org", "name": "nothing"},
        "import-data": {"namespace": "my-org", "project": "my-project"},
        "import-dataset": {"namespace": "my-org", "project": "my-project", "dataset": "x"},
    }
    answers = [http.post(f"/v1/examples/{example_id}/{verb}", json=body) for verb, body in bodies.items()]
    answers.append(http.get(f"/v1/examples/{example_id}/datasets"))
    for answer in answers:
        assert answer.status_code in ((404,) if example_id == "absent" else (400, 404)), answer.text
        assert "detail" in answer.json()
    assert http.get("/v1/projects/my-org/nothing").status_code == 404


def test_a_project_that_is_not_there_answers_404(http: httpx.Client) -> None:
    body = {"namespace": "my-org", "project": "not-there"}
    answer = http.post("/v1/examples/quickstart_rag/import-data", json=body)
    assert answer.status_code == 404
    assert "my-org/not-there" in answer.json()["detail"]


def test_examples_over_grpc(server: RunningServer, http: httpx.Client, project: str) -> None:
    for address in server.grpc_addresses:
        with grpc.insecure_channel(address) as channel:
            stub = example_pb2_grpc.ExampleServiceStub(channel)
            assert len(stub.ListExamples(example_pb2.ListExamplesRequest(), timeout=30).examples) == len(QUESTIONS)
            listed = stub.ListExampleDatasets(example_pb2.ListExampleDatasetsRequest(), timeout=30)
            assert len(listed.datasets) == len(QUESTIONS)
            request = example_pb2.ImportDataRequest(
                example_id="us_amendments", namespace="my-org", project="my-project", process=False
            )
            assert stub.ImportData(request, timeout=30).datasets == ["amendments"]
