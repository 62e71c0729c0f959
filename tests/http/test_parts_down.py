"""A part that is down is named by /health and takes nothing else with it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running_server import RunningServer, running

PROJECT = "/v1/projects/default/quickstart"
HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 8, "rag_enabled": False}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("parts"), "--example", "quickstart_rag") as server:
        yield server


@pytest.fixture
def client(started: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=started.url, timeout=60) as client:
        yield client
        wait_until_healthy(client)


def wait_until_healthy(client: httpx.Client) -> None:
    deadline = time.monotonic() + 90
    while client.get("/health").json()["status"] != "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def worker(server: RunningServer, module: str) -> int:
    """The worker's process, also when it is just being started again."""
    deadline = time.monotonic() + 60
    while True:
        for pid in server.descendants():
            with contextlib.suppress(OSError):
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_until_named(server: RunningServer, client: httpx.Client, module: str, part: str) -> dict[str, Any]:
    """Kills a worker until /health says so: one that is back within the same instant may go unnoticed."""
    deadline = time.monotonic() + 60
    while True:
        os.kill(worker(server, module), signal.SIGKILL)
        for _ in range(20):
            health: dict[str, Any] = client.get("/health").json()
            if status_of(health, part) != "healthy":
                return health
        assert time.monotonic() < deadline
        wait_until_healthy(client)


def status_of(health: dict[str, Any], part: str) -> str:
    return next(str(entry["status"]) for entry in health["components"] if entry["name"] == part)


def test_without_its_embedder_the_server_names_it_and_serves_the_rest(
    started: RunningServer, client: httpx.Client
) -> None:
    health = kill_until_named(started, client, "workers.embedder", "rag-service")
    assert health["status"] == "degraded"
    assert "rag-service" in health["summary"]
    assert status_of(health, "server") == status_of(health, "universal-runtime") == "healthy"
    assert health["services"]["api"] == health["services"]["celery"] == "healthy"
    query = {"query": "barn gate", "retrieval_strategy": "keyword"}
    found = client.post(f"{PROJECT}/rag/query", json=query)
    assert found.status_code == 200, found.text
    assert "21:00" in found.json()["results"][0]["content"]
    assert client.post(f"{PROJECT}/chat/completions", json=HELLO).status_code == 200
    assert client.get("/v1/projects/default").json()["total"] == 1
    assert client.get("/health/liveness").json() == {"status": "alive"}


def test_without_its_engine_the_server_names_it_and_serves_the_rest(
    started: RunningServer, client: httpx.Client
) -> None:
    health = kill_until_named(started, client, "workers.engine", "universal-runtime")
    assert health["status"] == "degraded"
    assert "universal-runtime" in health["summary"]
    assert health["seeds"][0]["status"] != "healthy"
    assert set(health["seeds"][0]["runtime"]) == {"provider", "model", "host"}
    assert status_of(health, "rag-service") == "healthy"
    found = client.post(f"{PROJECT}/rag/query", json={"query": "When does the barn gate close?"})
    assert found.status_code == 200, found.text
    assert found.json()["results"]
    assert client.get("/info").status_code == 200


def test_a_worker_that_hangs_does_not_make_health_hang(started: RunningServer, client: httpx.Client) -> None:
    stopped = worker(started, "workers.embedder")
    os.kill(stopped, signal.SIGSTOP)
    try:
        for _ in range(5):
            assert client.get("/health", timeout=10).status_code == 200
            assert client.get("/health/liveness", timeout=10).status_code == 200
        query = {"query": "barn gate", "retrieval_strategy": "keyword"}
        assert client.post(f"{PROJECT}/rag/query", json=query).json()["results"]
    finally:
        os.kill(stopped, signal.SIGCONT)
