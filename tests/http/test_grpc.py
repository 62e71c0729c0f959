"""gRPC, gRPC-Web, health and reflection, through the gateway and on the bare port."""

from __future__ import annotations

import asyncio
import base64
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from llamastead.v1 import chat_pb2, chat_pb2_grpc, dataset_pb2, dataset_pb2_grpc, system_pb2, system_pb2_grpc
from llamastead_server.domain.errors import NotFound, Overloaded
from llamastead_server.services import interceptors
from llamastead_server.services.server import SERVICE_NAMES
from tests.gateway import Running, ScriptedChat, running

REQUEST = chat_pb2.CreateChatCompletionRequest(namespace="a", project="b")
PORTS = pytest.mark.parametrize("port", ["gateway", "grpc"])


def address(gateway: Running, port: str) -> str:
    return gateway.addresses[0 if port == "gateway" else 1]


@PORTS
async def test_unary_calls_carry_metadata_both_ways(gateway: Running, chat: ScriptedChat, port: str) -> None:
    chat.headers = [("x-session-id", "s-1")]
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).CreateChatCompletion(
            REQUEST, timeout=20, metadata=[("x-session-id", "mine"), ("x-request-id", "r-1")]
        )
        assert (await call).id == "b"
        headers = dict(await call.initial_metadata())
        assert (headers["x-session-id"], headers["x-request-id"]) == ("s-1", "r-1")
    assert chat.metadata[0]["x-session-id"] == "mine"
    assert "x-envoy-original-path" not in chat.metadata[0]


@PORTS
async def test_streams_come_message_by_message(gateway: Running, chat: ScriptedChat, port: str) -> None:
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(REQUEST, timeout=20)
        chunks = [chunk.id async for chunk in call]
    assert chunks == ['data: {"n":0}\n\n', 'data: {"n":1}\n\n', 'data: {"n":2}\n\n', "data: [DONE]\n\n"]


@PORTS
async def test_errors_carry_code_message_and_typed_details(gateway: Running, chat: ScriptedChat, port: str) -> None:
    chat.error = Overloaded("Full: ü漢.", details={"waiting": "32"}, retry_after=2)
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await chat_pb2_grpc.ChatServiceStub(channel).CreateChatCompletion(REQUEST, timeout=20)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAVAILABLE, "Full: ü漢.")
    status = rpc_status.from_call(raised.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert (info.reason, dict(info.metadata)) == ("OVERLOADED", {"waiting": "32"})
    trailers = dict(raised.value.trailing_metadata() or ())
    assert "x-http-body" not in trailers
    assert trailers["x-request-id"]


async def test_through_the_gateway_a_native_call_cannot_pass_for_rest(gateway: Running, chat: ScriptedChat) -> None:
    chat.error = NotFound("No.")
    forged = [("x-envoy-original-path", "/api/forged"), ("x-envoy-original-method", "GET")]
    async with grpc.aio.insecure_channel(address(gateway, "gateway")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await chat_pb2_grpc.ChatServiceStub(channel).CreateChatCompletion(REQUEST, timeout=20, metadata=forged)
    assert "x-http-body" not in dict(raised.value.trailing_metadata() or ())
    assert rpc_status.from_call(raised.value) is not None


@PORTS
async def test_an_error_after_the_first_message_is_the_streams_status(
    gateway: Running, chat: ScriptedChat, port: str
) -> None:
    chat.fails_after = 2
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(REQUEST, timeout=20)
        for _ in range(2):
            assert await call.read() is not grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAVAILABLE, "The engine died.")


@PORTS
async def test_a_deadline_reaches_the_server_and_ends_the_work(gateway: Running, chat: ScriptedChat, port: str) -> None:
    chat.pause = 60
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await chat_pb2_grpc.ChatServiceStub(channel).CreateChatCompletion(REQUEST, timeout=1)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await chat.ended.wait()
    assert chat.remaining[0] is not None
    # Clocks of two processes; without the deadline there would be no time left to tell of.
    assert 0 < chat.remaining[0] < 5


@PORTS
async def test_a_cancelled_stream_ends_at_its_source(gateway: Running, chat: ScriptedChat, port: str) -> None:
    chat.events, chat.pause = 100_000, 0.01
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(REQUEST)
        await call.read()
        call.cancel()
        async with asyncio.timeout(5):
            await chat.ended.wait()


async def test_a_source_that_outruns_its_client_ends_when_the_client_goes(gateway: Running, chat: ScriptedChat) -> None:
    chat.events = 100_000_000
    async with grpc.aio.insecure_channel(address(gateway, "grpc")) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(REQUEST)
        await call.read()
        await asyncio.sleep(0.2)
        call.cancel()
        async with asyncio.timeout(5):
            await chat.ended.wait()


async def read_on(call: Any) -> None:
    while await call.read():
        pass


async def test_a_client_that_does_not_read_is_let_go(
    gateway: Running, chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamastead_server.services.interceptors._LONGEST_WRITE", 0.5)
    chat.events = 10_000_000
    async with grpc.aio.insecure_channel(gateway.addresses[1]) as channel:
        call = chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(REQUEST)
        await call.read()
        # It neither reads on nor goes away.
        async with asyncio.timeout(30):
            await chat.ended.wait()
        with pytest.raises(grpc.aio.AioRpcError, match="took no message"):
            await read_on(call)


@PORTS
async def test_client_streams_may_be_longer_than_a_json_body(gateway: Running, port: str) -> None:
    async def chunks() -> AsyncIterator[dataset_pb2.UploadFileRequest]:
        for _ in range(10):
            yield dataset_pb2.UploadFileRequest(chunk=b"x" * 1_000_000)

    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        answer = await dataset_pb2_grpc.DatasetServiceStub(channel).UploadFile(chunks(), timeout=30)
    assert answer.hash == "10000000"


@PORTS
async def test_what_this_server_does_not_offer_is_unimplemented(gateway: Running, port: str) -> None:
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await system_pb2_grpc.SystemServiceStub(channel).GetInfo(system_pb2.GetInfoRequest(), timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.details() == "SystemService.GetInfo is in the contract, but this server does not offer it."


@PORTS
async def test_tokens_guard_calls_and_not_health(chat: ScriptedChat, port: str) -> None:
    async with (
        running([chat], tokens=["right"]) as gateway,
        grpc.aio.insecure_channel(address(gateway, port)) as channel,
    ):
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        for metadata in ([], [("authorization", "Bearer wrong")], [("x-envoy-original-path", "/health")]):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.CreateChatCompletion(REQUEST, timeout=20, metadata=metadata)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.StreamChatCompletion(REQUEST, timeout=20, metadata=metadata).read()
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await stub.CreateChatCompletion(REQUEST, timeout=20, metadata=[("authorization", "Bearer right")])
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert len(chat.requests) == 1


@PORTS
async def test_health_tells_serving_from_draining_for_each_service(gateway: Running, port: str) -> None:
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICE_NAMES):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await gateway.server.set_serving(False)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAMES[0]), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def buf(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return output.decode()


@PORTS
async def test_buf_curl_needs_no_files_thanks_to_reflection(gateway: Running, port: str) -> None:
    url = f"http://{address(gateway, port)}"
    methods = await buf("--list-methods", url)
    assert "llamastead.v1.ChatService/CreateChatCompletion" in methods
    assert "internal" not in methods
    answer = await buf("-d", '{"namespace":"a","project":"b"}', f"{url}/llamastead.v1.ChatService/CreateChatCompletion")
    assert '"b"' in answer


@pytest.mark.parametrize("text", [False, True])
async def test_grpc_web_works_over_http_1(gateway: Running, chat: ScriptedChat, text: bool) -> None:
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"

    async def call(method: str) -> list[tuple[int, bytes]]:
        message = REQUEST.SerializeToString()
        content = struct.pack(">BI", 0, len(message)) + message
        answer = await gateway.http.post(
            f"/llamastead.v1.ChatService/{method}",
            content=base64.b64encode(content) if text else content,
            headers={"content-type": kind, "x-grpc-web": "1", "accept": kind, "origin": "http://localhost:5173"},
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
        if "grpc-status" in answer.headers:
            return [(0x80, f"grpc-status:{answer.headers['grpc-status']}".encode())]
        return frames(_unbase64(answer.content) if text else answer.content)

    (first, data), (last, trailers) = await call("CreateChatCompletion")
    assert (first, last) == (0, 0x80)
    assert chat_pb2.ChatCompletion.FromString(data).id == "b"
    assert b"grpc-status:0" in trailers.replace(b" ", b"")
    assert [flag for flag, _ in await call("StreamChatCompletion")] == [0, 0, 0, 0, 0x80]
    chat.error = NotFound("No.")
    assert b"grpc-status:5" in (await call("CreateChatCompletion"))[-1][1]


def frames(content: bytes) -> list[tuple[int, bytes]]:
    found = []
    while content:
        flag, length = struct.unpack_from(">BI", content)
        found.append((flag, content[5 : 5 + length]))
        content = content[5 + length :]
    return found


def _unbase64(content: bytes) -> bytes:
    """Decodes base64 of which each part may have its own padding."""
    return b"".join(base64.b64decode(content[start : start + 4]) for start in range(0, len(content), 4))


async def test_internal_services_are_on_neither_port(gateway: Running) -> None:
    for target in gateway.addresses:
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.unary_unary("/llamastead.internal.v1.EngineService/GetStatus")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(b"", timeout=20)
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@PORTS
@pytest.mark.parametrize("method", ["GetChatHistory", "StreamChatCompletion"])
async def test_a_call_that_ends_without_its_message_is_refused(
    gateway: Running, chat: ScriptedChat, port: str, method: str
) -> None:
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        call = channel.stream_stream(f"/llamastead.v1.ChatService/{method}")(timeout=20)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no message" in await call.details()
        assert dict(await call.trailing_metadata() or ())["x-request-id"]
    assert chat.requests == []


@PORTS
async def test_a_call_that_never_brings_its_message_is_ended(
    gateway: Running, chat: ScriptedChat, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "_LONGEST_PAUSE", 0.2)
    async with grpc.aio.insecure_channel(address(gateway, port)) as channel:
        call = channel.stream_unary("/llamastead.v1.ChatService/GetChatHistory")(timeout=20)
        await call.wait_for_connection()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not come within 0.2 seconds" in await call.details()
        upload = dataset_pb2_grpc.DatasetServiceStub(channel).UploadFile(timeout=20)
        await upload.write(dataset_pb2.UploadFileRequest(chunk=b"x"))
        assert await upload.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # An answer may pause for longer.
        chat.pause = 0.5
        answers = chat_pb2_grpc.ChatServiceStub(channel).StreamChatCompletion(REQUEST, timeout=20)
        assert len([answer async for answer in answers]) == 4


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("/llamastead.v1.ChatService/Chat", "GetChatHistory"),
        ("/llamastead.v1.Chat/Chat", "no service 'llamastead.v1.Chat'"),
        ("/llamastead.internal.v1.EngineService/Generate", "no service"),
        ("/grpc.health.v1.Health/Look", "Check"),
        ("nonsense", "no service"),
    ],
)
async def test_a_method_that_does_not_exist_is_unimplemented_and_says_what_does(
    gateway: Running, method: str, told: str
) -> None:
    async with grpc.aio.insecure_channel(address(gateway, "grpc")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(method)(b"", timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert told in (raised.value.details() or "")
