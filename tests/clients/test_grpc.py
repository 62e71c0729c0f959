"""A generated Python stub on both ports, and a client that knows nothing but reflection."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from llamastead.v1 import chat_pb2, chat_pb2_grpc, project_pb2, project_pb2_grpc
from llamastead_server.services.server import SERVICE_NAMES
from tests.running_server import RunningServer

PORTS = pytest.mark.parametrize("port", ["gateway", "bare"])


def address(server: RunningServer, port: str) -> str:
    return server.grpc_addresses[0 if port == "gateway" else 1]


def hello(**fields: object) -> chat_pb2.CreateChatCompletionRequest:
    request = chat_pb2.CreateChatCompletionRequest(
        namespace="default", project="quickstart", temperature=0, max_tokens=16, **fields
    )
    message = request.messages.add(role="user")
    message.content.string_value = "Hello!"
    return request


@PORTS
async def test_a_stub_streams_a_completion(server: RunningServer, port: str) -> None:
    async with grpc.aio.insecure_channel(address(server, port)) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        chunks = [chunk async for chunk in stub.StreamChatCompletion(hello())]
        whole = await stub.CreateChatCompletion(hello())
    text = "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)
    assert len(chunks) > 2
    assert text == whole.choices[0].message.content.string_value
    assert whole.usage.total_tokens > 0


@PORTS
async def test_errors_carry_code_reason_and_message(server: RunningServer, port: str) -> None:
    async with grpc.aio.insecure_channel(address(server, port)) as channel:
        stub = project_pb2_grpc.ProjectServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetProject(project_pb2.GetProjectRequest(namespace="default", project="absent"))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert "default/absent" in (raised.value.details() or "")
    status = rpc_status.from_call(raised.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.reason == "NOT_FOUND"


@PORTS
async def test_health_is_serving(server: RunningServer, port: str) -> None:
    async with grpc.aio.insecure_channel(address(server, port)) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@PORTS
def test_buf_curl_calls_by_reflection(server: RunningServer, port: str) -> None:
    buf = Path(sys.executable).with_name("buf")
    data = {"namespace": "default", "project": "quickstart"}
    url = f"http://{address(server, port)}/llamastead.v1.ProjectService/GetProject"
    finished = subprocess.run(
        [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", json.dumps(data), url],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["project"]["name"] == "quickstart"


@PORTS
def test_a_client_without_stubs_finds_every_service_and_calls_one(server: RunningServer, port: str) -> None:
    with grpc.insecure_channel(address(server, port)) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        listed = set(database.get_services())
        assert set(SERVICE_NAMES) <= listed
        assert {name for name in listed if name.startswith("llamastead.")} == set(SERVICE_NAMES)
        pool = descriptor_pool.DescriptorPool(database)
        for name in listed:
            assert pool.FindServiceByName(name).methods
        method = pool.FindServiceByName("llamastead.v1.DatasetService").FindMethodByName("ListDatasets")
        request = message_factory.GetMessageClass(method.input_type)()
        json_format.ParseDict({"namespace": "default", "project": "quickstart"}, request, descriptor_pool=pool)
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = json_format.MessageToDict(call(request, timeout=20), descriptor_pool=pool)
    assert "handbook" in [dataset["name"] for dataset in answer["datasets"]]
