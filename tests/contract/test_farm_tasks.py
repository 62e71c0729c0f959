"""LlamaFarm's document, section "Tasks API", and what its CLI and its Designer read beyond it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from llamastead.v1 import task_pb2, task_pb2_grpc
from tests.contract.shape import assert_shape
from tests.running_server import RunningServer

PROJECT = "/v1/projects/my-org/chores"
DATA = f"{PROJECT}/datasets/chores"
SLOW = 40
"""Files that are surely not all done when a test has seen the first one in work."""


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        client.delete(PROJECT)
        created = client.post("/v1/projects/my-org", json={"name": "chores", "config_template": "rag"})
        assert created.status_code == 200, created.text
        yield client


@pytest.fixture
def farm(client: httpx.Client) -> httpx.Client:
    """The client, with an empty dataset."""
    client.delete(DATA)
    created = client.post(f"{PROJECT}/datasets", json={"name": "chores", "database": "main_db"})
    assert created.status_code == 200, created.text
    return client


def start(client: httpx.Client, files: dict[str, bytes]) -> str:
    client.post(f"{DATA}/data/bulk", files=[("files", (name, content)) for name, content in files.items()])
    started = client.post(f"{DATA}/process?async_processing=true").json()
    assert started["message"] == "Dataset processing started asynchronously"
    assert {(file["filename"], file["status"]) for file in started["details"]} == {(None, "pending")}
    return str(started["task_id"])


def task(client: httpx.Client, task_id: str) -> dict[str, Any]:
    return dict(client.get(f"{PROJECT}/tasks/{task_id}").json())


def ended(client: httpx.Client, task_id: str) -> dict[str, Any]:
    while True:
        seen = task(client, task_id)
        if seen["state"] in ("SUCCESS", "FAILURE"):
            return seen


def papers(count: int) -> dict[str, bytes]:
    return {
        f"paper{number}.txt": " ".join(f"Paper {number} says in line {n} that llamas hum." for n in range(300)).encode()
        for number in range(count)
    }


def test_a_task_is_shown_as_documented_and_as_the_clients_read_it(farm: httpx.Client) -> None:
    task_id = start(farm, {"gate.txt": b"The gate closes at nine.", "broken.pdf": b"%PDF-1.7 nonsense"})
    seen = ended(farm, task_id)
    documented = {
        "task_id": "task-123-abc",
        "state": "SUCCESS",
        "meta": {"current": 2, "total": 2},
        "result": {"processed_files": 2, "failed_files": 0},
        "error": None,
        "traceback": None,
    }
    assert_shape(documented, seen)
    assert (seen["error"], seen["traceback"], seen["cancelled"]) == (None, None, False)
    file = {
        "index": 0,
        "task_id": "abc",
        "state": "success",
        "filename": "gate.txt",
        "chunks": 1,
        "stored_count": 1,
        "skipped_count": 0,
        "file_hash": "abc",
    }
    meta = {"current": 2, "total": 2, "progress": 100.0, "message": "text", "files": [file]}
    assert_shape(meta, seen["meta"])
    states = {entry["filename"]: entry["state"] for entry in seen["meta"]["files"]}
    assert states == {"gate.txt": "success", "broken.pdf": "failure"}
    result = seen["result"]
    counts = {"processed_files": 1, "skipped_files": 0, "failed_files": 1, "stored_count": 1, "skipped_count": 0}
    assert {key: result[key] for key in counts} == counts
    detail = {"hash": "a", "filename": "a", "status": "a", "extractors": [], "file_hash": "a", "stored_count": 0}
    for ok, found in result["details"]:
        assert_shape({**detail, "result": {"filename": "a"}}, found)
        assert ok == (found["status"] == "processed")


def test_a_run_in_which_every_file_fails_is_a_failure_with_its_details(farm: httpx.Client) -> None:
    seen = ended(farm, start(farm, {"broken.pdf": b"%PDF-1.7 nonsense", "empty.txt": b""}))
    assert seen["state"] == "FAILURE"
    assert "None of the 2 files" in seen["error"]
    assert seen["result"]["failed_files"] == 2
    assert seen["traceback"] is None


def test_an_unknown_task_is_not_found(farm: httpx.Client) -> None:
    for call in (farm.get, farm.delete):
        answer = call(f"{PROJECT}/tasks/task-123-abc")
        assert (answer.status_code, "task-123-abc" in answer.json()["detail"]) == (404, True)


CANCELLED = {
    "message": "text",
    "task_id": "abc",
    "cancelled": True,
    "pending_tasks_cancelled": 1,
    "running_tasks_at_cancel": 1,
    "files_reverted": 1,
    "files_failed_to_revert": 0,
    "already_completed": False,
    "already_cancelled": False,
}


def test_cancelling_stops_the_work_and_puts_the_files_back(farm: httpx.Client) -> None:
    task_id = start(farm, papers(SLOW))
    while not [file for file in task(farm, task_id)["meta"]["files"] if file["state"] == "processing"]:
        pass
    answer = farm.delete(f"{PROJECT}/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert_shape(CANCELLED, body)
    assert body["pending_tasks_cancelled"] > 0
    assert body["running_tasks_at_cancel"] >= body["files_reverted"]
    assert (body["cancelled"], body["files_failed_to_revert"], body["already_cancelled"]) == (True, 0, False)
    seen = task(farm, task_id)
    assert (seen["state"], seen["cancelled"]) == ("FAILURE", True)
    files = farm.get(f"{PROJECT}/datasets").json()["datasets"][0]["details"]["files_metadata"]
    assert {file["status"] for file in files} <= {"uploaded", "processed"}
    again = farm.delete(f"{PROJECT}/tasks/{task_id}").json()
    assert_shape(CANCELLED, again)
    assert (again["cancelled"], again["already_cancelled"], again["already_completed"]) == (True, True, False)
    assert again["files_reverted"] == 0


def test_cancelling_a_task_that_has_ended_changes_nothing(farm: httpx.Client) -> None:
    task_id = start(farm, {"gate.txt": b"The gate closes at nine."})
    before = ended(farm, task_id)
    body = farm.delete(f"/api{PROJECT}/tasks/{task_id}").json()
    assert (body["cancelled"], body["already_completed"], body["already_cancelled"]) == (False, True, False)
    assert task(farm, task_id) == before


@pytest.mark.parametrize("port", [0, 1], ids=["gateway", "grpc"])
async def test_a_task_is_watched_to_its_end_through_both_ports(
    farm: httpx.Client, server: RunningServer, port: int
) -> None:
    task_id = start(farm, papers(SLOW))
    request = task_pb2.WatchTaskRequest(namespace="my-org", project="chores", task_id=task_id)
    async with asyncio.timeout(60), grpc.aio.insecure_channel(server.grpc_addresses[port]) as channel:
        tasks = task_pb2_grpc.TaskServiceStub(channel)
        states = []
        async for state in tasks.WatchTask(request):
            states.append(state)
            if any(file.state == "processing" for file in state.meta.files) and not state.cancelled:
                names = {"namespace": "my-org", "project": "chores", "task_id": task_id}
                await tasks.CancelTask(task_pb2.CancelTaskRequest(**names))
    assert states[0].task_id == task_id
    assert (states[-1].state, states[-1].cancelled) == ("FAILURE", True)
