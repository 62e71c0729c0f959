"""The WebSocket of the whole server, as a program uses it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.running_server import RunningServer, running

CHAT = {
    "type": "chat",
    "id": "1",
    "namespace": "default",
    "project": "quickstart",
    "request": {"messages": [{"role": "user", "content": "When does the barn gate close?"}], "include_sources": True},
}


def opened(server: RunningServer) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/ws", proxy=None)


def ask(connection: ClientConnection, frame: dict[str, Any], *ends: str) -> list[dict[str, Any]]:
    connection.send(json.dumps(frame))
    found = [json.loads(connection.recv(60))]
    while found[-1]["type"] not in ends:
        found.append(json.loads(connection.recv(60)))
    return found


def test_a_chat_finds_its_answer_in_the_documents(server: RunningServer) -> None:
    with opened(server) as connection:
        frames = ask(connection, CHAT, "done", "error")
    assert frames[-1]["type"] == "done", frames[-1]
    assert "21:00" in "".join(frame["text"] for frame in frames if frame["type"] == "delta")
    assert next(frame for frame in frames if frame["type"] == "sources")["sources"]


def test_metrics_tell_of_the_running_server(server: RunningServer) -> None:
    with opened(server) as connection:
        (tick,) = ask(connection, {"type": "metrics.subscribe", "id": "m"}, "metrics")
    assert tick["metrics"]["uptime"] > 0
    assert tick["metrics"]["loaded_models"] >= 1
    assert tick["metrics"]["memory_bytes"] > 10_000_000


def test_a_model_is_loaded_with_its_states(server: RunningServer) -> None:
    with opened(server) as connection:
        frames = ask(connection, {"type": "model.load", "id": "l", "model": "llama3.3"}, "done", "error")
    assert [frame["type"] for frame in frames[-2:]] == ["model", "done"], frames
    assert frames[-2]["state"] == "ready"


def test_a_server_that_stops_says_goodbye(tmp_path: Path) -> None:
    with running(tmp_path) as server, opened(server) as connection:
        ask(connection, {"type": "metrics.subscribe", "id": "m"}, "metrics")
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        # Iterating ends with a closure that is in order, which 1001 is.
        for frame in connection:
            assert json.loads(frame)["type"] == "metrics"
        assert connection.close_code == 1001
        assert server.process.wait(60) == 0
