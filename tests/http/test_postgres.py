"""A whole server over Postgres: used, killed in the middle of its work, and without its database for a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llamastead_server.adapters.database import Database
from tests.postgres import Postgres
from tests.running_server import RunningServer, running

CHAT = "/v1/projects/default/quickstart/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "temperature": 0}
DATASETS = "/v1/projects/default/quickstart/datasets"
TEXT = "The {0} barn keeps its hay in the {0} loft. " * 80
FILES = 6


def settings(url: str) -> dict[str, str]:
    return {"LLAMASTEAD_DATABASE_URL": url}


def command(server: RunningServer, url: str, *arguments: str) -> str:
    environment = {**os.environ, "LLAMASTEAD_DATA_DIR": str(server.data_dir), **settings(url)}
    done = subprocess.run(
        [sys.executable, "-m", "llamastead_server.cli", *arguments],
        env=environment,
        cwd=server.folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def task(http: httpx.Client, task_id: str) -> dict[str, Any]:
    return dict(http.get(f"/v1/projects/default/quickstart/tasks/{task_id}").raise_for_status().json())


def ended(http: httpx.Client, task_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while (state := task(http, task_id))["state"] not in ("SUCCESS", "FAILURE"):
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    return state


def found(http: httpx.Client, words: str) -> str:
    answer = http.post("/v1/projects/default/quickstart/rag/query", json={"query": words})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["results"])


def begin_batch(http: httpx.Client) -> str:
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": HELLO} for n in range(6)]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    body = {
        "input_file_id": uploaded.raise_for_status().json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return str(http.post("/v1/batches", json=body).raise_for_status().json()["id"])


def answers(http: httpx.Client, batch_id: str) -> list[str]:
    deadline = time.monotonic() + 90
    while (batch := http.get(f"/v1/batches/{batch_id}").json())["status"] != "completed":
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    lines = http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    return [json.loads(line)["custom_id"] for line in lines]


def test_nothing_is_lost_when_a_server_over_postgres_is_killed_at_work(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.schema()
    start = running(tmp_path, "--example", "quickstart_rag", settings=settings(url))
    with start as server, httpx.Client(base_url=server.url, timeout=60) as http:
        http.post(CHAT, json=HELLO, headers={"X-Session-ID": "kept"}).raise_for_status()
        barns = {"name": "barns", "database": "main_db", "data_processing_strategy": "handbook_processor"}
        http.post(DATASETS, json=barns).raise_for_status()
        for number in range(FILES):
            file = (f"{number}.txt", TEXT.format(f"number{number}").encode())
            http.post(f"{DATASETS}/barns/data", files={"file": file}).raise_for_status()
        batch = begin_batch(http)
        started = http.post(f"{DATASETS}/barns/actions", json={"action_type": "process"}).raise_for_status()
        task_id = started.json()["task_id"]
        while task(http, task_id)["state"] == "PENDING":
            time.sleep(0.01)
        server.kill()
    assert postgres.run(f"SELECT state FROM tasks WHERE id = '{task_id}'", url) == [("STARTED",)]
    assert not (server.data_dir / "llamastead.db").exists()
    with running(tmp_path, settings=settings(url)) as again, httpx.Client(base_url=again.url, timeout=60) as http:
        assert ended(http, task_id)["state"] == "SUCCESS"
        assert f"number{FILES - 1}" in found(http, f"Where is the hay of the number{FILES - 1} barn?")
        assert "21:00" in found(http, "When does the barn gate close?")
        history = http.get("/v1/projects/default/quickstart/chat/sessions/kept/history").json()["messages"]
        assert [message["role"] for message in history] == ["user", "assistant"]
        assert answers(http, batch) == [str(number) for number in range(6)]
        http.post(CHAT, json=HELLO, headers={"X-Session-ID": "kept"}).raise_for_status()
        http.delete(f"{DATASETS}/barns").raise_for_status()
        secret = command(again, url, "tokens", "create", "--name", "ci", "--scope", "admin").split()[-1]
        deadline = time.monotonic() + 10
        while http.get(DATASETS).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert http.get(DATASETS, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert "Traceback" not in again.log


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A Postgres that the test may stop."""
    with Postgres() as server:
        yield server


def test_a_postgres_that_is_away_is_told_and_then_found_again(tmp_path: Path, own_postgres: Postgres) -> None:
    url = own_postgres.url
    with running(tmp_path, settings=settings(url)) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        http.post("/v1/projects/acme", json={"name": "bot", "config_template": "default"}).raise_for_status()
        chat = "/v1/projects/acme/bot/chat/completions"
        http.post(chat, json=HELLO, headers={"X-Session-ID": "kept"}).raise_for_status()
        own_postgres.stop()
        refused = http.post(chat, json=HELLO, headers={"X-Session-ID": "kept"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert "database" in refused.text
        # What needs no database goes on.
        assert http.post("/v1/chat/completions", json=HELLO).status_code == 200
        health = http.get("/health")
        assert health.json()["status"] == "degraded"
        assert "database can't be used" in health.text
        own_postgres.start()
        deadline = time.monotonic() + 30
        while http.get("/health").json()["status"] != "healthy":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        http.post(chat, json=HELLO, headers={"X-Session-ID": "kept"}).raise_for_status()
        history = http.get("/v1/projects/acme/bot/chat/sessions/kept/history").json()["messages"]
        assert len(history) == 4
        assert "Traceback" not in server.log
        # Once, and again at most as it comes back: not with every question.
        assert server.log.count("the database can't be used") <= 3


async def test_a_second_server_over_the_same_postgres_is_refused_clearly(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.schema()
    async with Database(url, for_server=True):
        with pytest.raises(AssertionError, match="Another server uses the Postgres database"):
            RunningServer(tmp_path, settings(url)).start()
    assert "Traceback" not in (tmp_path / "server.log").read_text()
