"""The liveness probe is answered whatever the server does; `tests/soak/liveness.py` measures how fast."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx

from tests.running_server import running

CHAT = "/v1/projects/default/quickstart/chat/completions"
PROJECT = "/v1/projects/my-org/heavy"
TEXT = "".join(f"Note {number} of the farm: the llama stands at gate {number * 7}.\n" for number in range(40_000))


def chat(client: httpx.Client, stop: Event) -> int:
    body = {"messages": [{"role": "user", "content": "Tell me of the farm."}], "max_tokens": 100, "stream": True}
    answered = 0
    while not stop.is_set():
        with client.stream("POST", CHAT, json=body, headers={"X-No-Session": "true"}) as answer:
            assert answer.status_code == 200
            answered += any(line == "data: [DONE]" for line in answer.iter_lines())
    return answered


def test_every_probe_is_answered_while_a_large_file_is_processed_and_chats_run(tmp_path: Path) -> None:
    stop = Event()
    with (
        running(tmp_path, "--example", "quickstart_rag") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        client.post("/v1/projects/my-org", json={"name": "heavy", "config_template": "rag"}).raise_for_status()
        client.post(f"{PROJECT}/datasets", json={"name": "notes", "database": "main_db"}).raise_for_status()
        chats = [pool.submit(chat, client, stop) for _ in range(6)]
        try:
            upload = {"file": ("notes.txt", TEXT.encode())}
            client.post(f"{PROJECT}/datasets/notes/data", files=upload).raise_for_status()
            process = client.post(f"{PROJECT}/datasets/notes/process", params={"async_processing": True})
            task = process.raise_for_status().json()["task_id"]
            for _ in range(200):
                assert client.get("/health/liveness").json() == {"status": "alive"}
            assert client.get(f"{PROJECT}/tasks/{task}").json()["state"] in ("STARTED", "SUCCESS")
        finally:
            stop.set()
        assert all(answers.result() for answers in chats)
        client.delete(PROJECT).raise_for_status()
