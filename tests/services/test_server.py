from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from llamastead.v1 import chat_pb2, chat_pb2_grpc
from llamastead_server.domain.errors import Unavailable
from llamastead_server.services.openapi_document import OpenApiDocument
from llamastead_server.services.server import GrpcServer, build
from llamastead_server.services.system import SystemServicer
from tests.gateway import ScriptedChat
from tests.running_server import free_port

REQUEST = chat_pb2.CreateChatCompletionRequest(namespace="a", project="b")


@contextlib.asynccontextmanager
async def started(folder: Path, port: int, *servicers: object) -> AsyncIterator[GrpcServer]:
    server = build(servicers, host="127.0.0.1", grpc_port=port, socket=folder / "server.sock")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


async def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    port = free_port()
    async with started(tmp_path, port):
        with pytest.raises(Unavailable, match=f"{port}.*LLAMASTEAD_GRPC_PORT"):
            build([], host="127.0.0.1", grpc_port=port, socket=tmp_path / "other.sock")


async def test_a_socket_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "server.sock").touch()
    async with (
        started(tmp_path, free_port(), ScriptedChat()),
        grpc.aio.insecure_channel(f"unix:{tmp_path}/server.sock") as channel,
    ):
        assert (await chat_pb2_grpc.ChatServiceStub(channel).CreateChatCompletion(REQUEST, timeout=20)).id == "b"


async def test_a_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nowhere/server\.sock"):
        build([], host="127.0.0.1", grpc_port=free_port(), socket=tmp_path / "nowhere" / "server.sock")


async def test_a_servicer_given_twice_or_of_no_public_service_is_refused(tmp_path: Path) -> None:
    twice = [SystemServicer("1", Path("/"), Path("/"), OpenApiDocument(), []) for _ in range(2)]
    for servicers, error in ((twice, ValueError), ([object()], TypeError)):
        with pytest.raises(error):
            build(servicers, host="127.0.0.1", grpc_port=free_port(), socket=tmp_path / "server.sock")


@pytest.mark.parametrize(("grace", "ended_well"), [(20.0, True), (0.0, False)])
async def test_stopping_gives_running_calls_the_grace_and_then_cancels_them(
    tmp_path: Path, grace: float, ended_well: bool
) -> None:
    chat = ScriptedChat()
    chat.pause = 0.3 if ended_well else 60
    port = free_port()
    async with started(tmp_path, port, chat) as server, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        call = asyncio.ensure_future(stub.CreateChatCompletion(REQUEST, timeout=90))
        while not chat.requests:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            await server.stop(grace)
            await chat.ended.wait()
        if ended_well:
            assert (await call).id == "b"
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await call
