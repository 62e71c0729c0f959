"""The real gateway before a real gRPC server, with servicers a test controls and no engine behind them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
from google.api.httpbody_pb2 import HttpBody

from llamastead.v1 import chat_pb2, chat_pb2_grpc, dataset_pb2, dataset_pb2_grpc
from llamastead_server.adapters.envoy import EnvoyGateway, GatewayOptions
from llamastead_server.domain.access.tokens import Token, Tokens
from llamastead_server.domain.errors import PayloadTooLarge, Unavailable
from llamastead_server.services import http_body, server
from llamastead_server.services.auth import BearerAuth
from llamastead_server.services.interceptors import Layer
from tests.running_server import free_port

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class Running:
    """A gateway with its server."""

    gateway: EnvoyGateway
    server: server.GrpcServer
    port: int
    grpc_port: int
    http: httpx.AsyncClient

    @property
    def addresses(self) -> tuple[str, str]:
        """The gateway's address and the bare gRPC port's."""
        return f"127.0.0.1:{self.port}", f"127.0.0.1:{self.grpc_port}"


@contextlib.asynccontextmanager
async def running(
    servicers: Sequence[object] = (),
    *,
    tokens: Sequence[str] = (),
    layers: Sequence[Layer] = (),
    limits: server.ServerLimits | None = None,
    with_reflection: bool = True,
    **options: Any,
) -> AsyncIterator[Running]:
    """Starts both for one block."""
    port, grpc_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        socket = folder / "server.sock"
        grpc_server = server.build(
            servicers,
            host="127.0.0.1",
            grpc_port=grpc_port,
            socket=socket,
            layers=layers or [BearerAuth(Tokens(NoTokens(), time.time, fixed=tokens))],
            limits=limits,
            with_reflection=with_reflection,
        )
        gateway = EnvoyGateway(GatewayOptions("127.0.0.1", port, socket, folder, **options))
        try:
            await grpc_server.start()
            await grpc_server.set_serving(True)
            await gateway.start()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                yield Running(gateway, grpc_server, port, grpc_port, http)
        finally:
            await gateway.stop()
            await grpc_server.stop(0)


class NoTokens:
    """A store of tokens that stays empty."""

    async def add(self, token: Token) -> bool:
        raise AssertionError("nothing is kept here")

    async def all(self) -> Sequence[Token]:
        return ()

    async def remove(self, name: str) -> Token | None:
        return None


class ScriptedChat(chat_pb2_grpc.ChatServiceServicer):
    """Does what a test says, and tells what happened to it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.events = 3
        self.pause = 0.0
        self.made = 0
        self.fails_after: int | None = None
        self.headers: list[tuple[str, str]] = []
        self.requests: list[chat_pb2.CreateChatCompletionRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.remaining: list[float | None] = []
        self.ended = asyncio.Event()

    async def CreateChatCompletionHttp(
        self, request: chat_pb2.CreateChatCompletionRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        await self._receive(request, context)
        if not request.stream:
            yield http_body.json_body({"echo": request.project})
            return
        stream = http_body.late_errors(self._events())
        async with contextlib.aclosing(cast(AsyncGenerator[HttpBody, None], stream)) as bodies:
            async for body in bodies:
                yield body

    async def CreateChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: Context
    ) -> chat_pb2.ChatCompletion:
        try:
            await self._receive(request, context)
            await asyncio.sleep(self.pause)
            return chat_pb2.ChatCompletion(id=request.project, created=7)
        finally:
            self.ended.set()

    async def StreamChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: Context
    ) -> AsyncIterator[chat_pb2.ChatCompletionChunk]:
        await self._receive(request, context)
        async with contextlib.aclosing(cast(AsyncGenerator[HttpBody, None], self._events())) as events:
            async for event in events:
                yield chat_pb2.ChatCompletionChunk(id=event.data.decode())

    async def GetChatHistory(
        self, request: chat_pb2.GetChatHistoryRequest, context: Context
    ) -> chat_pb2.GetChatHistoryResponse:
        if self.error is not None:
            raise self.error
        names = (request.namespace, request.project, request.session_id)
        return chat_pb2.GetChatHistoryResponse(messages=[chat_pb2.ChatMessage(role=name) for name in names])

    async def _receive(self, request: chat_pb2.CreateChatCompletionRequest, context: Context) -> None:
        self.requests.append(request)
        self.metadata.append({name: str(value) for name, value in context.invocation_metadata() or ()})
        self.remaining.append(context.time_remaining())
        await context.send_initial_metadata(tuple(self.headers))
        if self.error is not None:
            raise self.error

    async def _events(self) -> AsyncIterator[HttpBody]:
        try:
            for number in range(self.events):
                if number == self.fails_after:
                    raise Unavailable("The engine died.")
                self.made += 1
                yield http_body.sse_event({"n": number})
                await asyncio.sleep(self.pause)
            yield http_body.DONE
        finally:
            self.ended.set()


class ScriptedUploads(dataset_pb2_grpc.DatasetServiceServicer):
    """Counts what is uploaded."""

    def __init__(self) -> None:
        self.limit: int | None = None

    async def UploadFileHttp(
        self, request_iterator: AsyncIterator[dataset_pb2.UploadFileHttpRequest], context: Context
    ) -> dataset_pb2.UploadFileResponse:
        size = 0
        name = ""
        async for request in request_iterator:
            name = name or f"{request.namespace}/{request.project}/{request.dataset} {request.body.content_type}"
            size += len(request.body.data)
            if self.limit is not None and size > self.limit:
                raise PayloadTooLarge(f"Files may have {self.limit} bytes.")
        return dataset_pb2.UploadFileResponse(filename=name, hash=str(size))

    async def UploadFile(
        self, request_iterator: AsyncIterator[dataset_pb2.UploadFileRequest], context: Context
    ) -> dataset_pb2.UploadFileResponse:
        size = sum([len(request.chunk) async for request in request_iterator])
        return dataset_pb2.UploadFileResponse(hash=str(size))
