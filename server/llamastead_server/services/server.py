"""The gRPC server: every public service, health and reflection, on the gateway's socket and a port."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from llamastead.v1 import (
    batch_pb2_grpc,
    chat_pb2_grpc,
    config_pb2_grpc,
    dataset_pb2_grpc,
    example_pb2_grpc,
    model_pb2_grpc,
    openai_pb2_grpc,
    operations_pb2_grpc,
    project_pb2_grpc,
    prompt_pb2_grpc,
    retrieval_pb2_grpc,
    system_pb2_grpc,
    task_pb2_grpc,
    token_pb2_grpc,
)
from llamastead_server.domain.errors import Unavailable
from llamastead_server.services.error_layer import error_layer
from llamastead_server.services.interceptors import CallInterceptor, Layer
from llamastead_server.services.telemetry import Telemetry

_Register = Callable[[Any, grpc.aio.Server], None]
_SERVICES: Mapping[str, tuple[type, _Register]] = {
    "BatchService": (batch_pb2_grpc.BatchServiceServicer, batch_pb2_grpc.add_BatchServiceServicer_to_server),
    "ChatService": (chat_pb2_grpc.ChatServiceServicer, chat_pb2_grpc.add_ChatServiceServicer_to_server),
    "ConfigService": (config_pb2_grpc.ConfigServiceServicer, config_pb2_grpc.add_ConfigServiceServicer_to_server),
    "DatasetService": (dataset_pb2_grpc.DatasetServiceServicer, dataset_pb2_grpc.add_DatasetServiceServicer_to_server),
    "ExampleService": (example_pb2_grpc.ExampleServiceServicer, example_pb2_grpc.add_ExampleServiceServicer_to_server),
    "ModelService": (model_pb2_grpc.ModelServiceServicer, model_pb2_grpc.add_ModelServiceServicer_to_server),
    "OpenAIService": (openai_pb2_grpc.OpenAIServiceServicer, openai_pb2_grpc.add_OpenAIServiceServicer_to_server),
    "OperationsService": (
        operations_pb2_grpc.OperationsServiceServicer,
        operations_pb2_grpc.add_OperationsServiceServicer_to_server,
    ),
    "ProjectService": (project_pb2_grpc.ProjectServiceServicer, project_pb2_grpc.add_ProjectServiceServicer_to_server),
    "PromptService": (prompt_pb2_grpc.PromptServiceServicer, prompt_pb2_grpc.add_PromptServiceServicer_to_server),
    "RetrievalService": (
        retrieval_pb2_grpc.RetrievalServiceServicer,
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server,
    ),
    "SystemService": (system_pb2_grpc.SystemServiceServicer, system_pb2_grpc.add_SystemServiceServicer_to_server),
    "TaskService": (task_pb2_grpc.TaskServiceServicer, task_pb2_grpc.add_TaskServiceServicer_to_server),
    "TokenService": (token_pb2_grpc.TokenServiceServicer, token_pb2_grpc.add_TokenServiceServicer_to_server),
}
SERVICE_NAMES = tuple(f"llamastead.v1.{name}" for name in _SERVICES)
"""Full names of the public services."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one gRPC server.

    Args:
        message_bytes: Largest message taken. A JSON body can grow several times in its protobuf form.
        answer_bytes: Largest message sent: a list of many projects or files is far larger than any request. As JSON it
            can be larger still, of which the gateway passes 64 MiB.
        metadata_bytes: Most metadata taken with a call for sure; more than 1.5 times as much is refused for sure.
    """

    message_bytes: int = 32 << 20
    answer_bytes: int = 64 << 20
    metadata_bytes: int = 64 << 10


class GrpcServer:
    """The running server.

    Build it with `build`. `start` opens the ports and says NOT_SERVING until `set_serving(True)`.
    """

    def __init__(self, server: grpc.aio.Server, health_servicer: HealthServicer) -> None:
        self._server = server
        self._health = health_servicer

    async def start(self) -> None:
        """Starts to answer; health says NOT_SERVING."""
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Says to health checks of the server and of every service whether calls are welcome."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Refuses new calls, gives running ones `grace` seconds, then cancels them; returns when all have ended."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


def build(
    servicers: Sequence[object],
    *,
    host: str,
    grpc_port: int,
    socket: Path,
    layers: Sequence[Layer] = (),
    telemetry: Telemetry | None = None,
    limits: ServerLimits | None = None,
    with_reflection: bool = True,
) -> GrpcServer:
    """Builds the server and takes its ports; call it on the running event loop.

    Args:
        servicers: One per service that is implemented; the methods of all others answer UNIMPLEMENTED.
        host: Address of the port for native clients.
        grpc_port: That port.
        socket: Unix socket for the gateway; a file that a dead server left there is removed.
        layers: Layers around each call, inside telemetry and the translation of errors, the outermost first:
            authentication and what counts callers.
        telemetry: The outermost layer.
        limits: Bounds of sizes.
        with_reflection: Whether clients may ask for the contract, which needs no token.

    Raises:
        Unavailable: The port or the socket cannot be taken.
    """
    bounds = limits or ServerLimits()
    server = grpc.aio.server(
        interceptors=[CallInterceptor([telemetry or Telemetry(), error_layer, *layers])],
        options=[
            # Without this a second server on a taken port would get half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", bounds.message_bytes),
            ("grpc.max_send_message_length", bounds.answer_bytes),
            # gRPC refuses metadata at random between the two.
            ("grpc.max_metadata_size", bounds.metadata_bytes),
            ("grpc.absolute_max_metadata_size", bounds.metadata_bytes * 3 // 2),
            # Finds clients that went away without a word.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    _register(server, servicers)
    health_servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if with_reflection:
        reflection.enable_server_reflection((*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    _listen(server, f"{_bracketed(host)}:{grpc_port}", f"Port {grpc_port} on {host} is taken or not allowed. "
            "Stop what uses it, or set LLAMASTEAD_GRPC_PORT to another.")  # fmt: skip
    socket.unlink(missing_ok=True)
    _listen(server, f"unix:{socket}", f"The socket {socket} cannot be made.")
    return GrpcServer(server, health_servicer)


def _register(server: grpc.aio.Server, servicers: Sequence[object]) -> None:
    given = list(servicers)
    for base, register in _SERVICES.values():
        mine = [servicer for servicer in given if isinstance(servicer, base)]
        if len(mine) > 1:
            raise ValueError(f"{base.__name__} was given twice")
        register(mine[0] if mine else base(), server)
        given = [servicer for servicer in given if servicer not in mine]
    if given:
        raise TypeError(f"{type(given[0]).__name__} is no servicer of a public service")


def _listen(server: grpc.aio.Server, address: str, message: str) -> None:
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise Unavailable(message)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
