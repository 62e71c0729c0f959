"""One interceptor that wraps every public call, of all four kinds, in layers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import DecodeError, Message

from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.errors import InvalidRequest, LlamasteadError, NotSupported, RequestTimeout
from llamastead_server.services.absent_method import absent
from llamastead_server.services.metadata import CallMetadata, MetadataPairs

_Context = grpc.aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    # Generic in their stubs only.
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _ServerInterceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _ServerInterceptor = grpc.aio.ServerInterceptor


_LONGEST_WRITE = 60.0
"""Seconds a client may take for one message of a stream."""
_LONGEST_PAUSE = 300.0
"""Seconds until a message of a request must have come; over REST a single message is the whole body."""

Check = Callable[[Message, bool], Awaitable[None]]
"""Looks at a message of a request before the servicer sees it, and raises to refuse the call. The second argument
tells whether it is the first of its call."""


@dataclass(slots=True)
class Call:
    """One call on its way through the layers.

    Args:
        method: Full name, such as `/llamastead.v1.ChatService/GetChatHistory`.
        metadata: What it came with.
        context: gRPC's context; layers end the call with its `abort`.
        request_id: The id in every log line about it and in its answer.
        address: Address of the client.
        principal: Who makes it, once that is known; None where nobody asks.
        headers: What its answer carries, also when it fails.
        checks: What looks at its messages.
        recheck: Raises when its caller may no longer call.
        user: The end user it is made for, as the caller names them; None where it does not.
    """

    method: str
    metadata: CallMetadata
    context: _Context
    request_id: str
    address: str
    principal: Principal | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    recheck: Callable[[], object] = lambda: None
    user: str | None = None

    async def check(self, request: Any, *, first: bool = True) -> Any:
        """Gives a message of the request back, unless it cannot be read or a check refuses it."""
        if isinstance(request, _Unreadable):
            raise request.error
        for check in self.checks:
            await check(request, first)
        return request


Layer = Callable[[Call], AbstractAsyncContextManager[None]]
"""Surrounds a call: entered before the servicer runs, left after its last message, by the exception if one ended it."""


class CallContext:
    """The context a servicer sees: gRPC's own, whose headers leave with the first message.

    So an error before the first message finds no headers sent, and becomes a real HTTP status.
    """

    def __init__(self, call: Call) -> None:
        self._context = call.context
        self._call = call
        self._headers: list[tuple[str, str | bytes]] = []
        self._sent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    @property
    def principal(self) -> Principal | None:
        """Who makes the call."""
        return self._call.principal

    def recheck(self) -> None:
        """Raises `Unauthenticated` when who makes the call may no longer call."""
        self._call.recheck()

    async def send_initial_metadata(self, initial_metadata: MetadataPairs) -> None:
        """Sets headers; they are sent with the first message."""
        if self._sent:
            raise RuntimeError("headers cannot follow the first message")
        self._headers += initial_metadata

    async def write(self, message: Any) -> None:
        """Sends a message of a response stream, after the headers; ends the call of a client that does not read.

        Otherwise it would hold what the call holds, such as one of the few places in an engine, as long as it likes.
        """
        await self.send_headers()
        try:
            async with asyncio.timeout(_LONGEST_WRITE):
                await self._context.write(message)
        except TimeoutError:
            # What the call held is free when the status goes out, which waits behind the message until it is taken.
            raise RequestTimeout(f"The client took no message for {_LONGEST_WRITE:g} seconds.") from None

    async def send_headers(self) -> None:
        """Sends the headers now, unless they are on their way."""
        if not self._sent:
            self._sent = True
            await self._context.send_initial_metadata((*self._call.headers, *self._headers))


def recheck(context: object) -> None:
    """Raises `Unauthenticated` when who made the call may no longer call: for streams that have no end."""
    if isinstance(context, CallContext):
        context.recheck()


class CallInterceptor(_ServerInterceptor):
    """Runs every call of the public services inside the layers.

    gRPC's own services (health, reflection) pass untouched: they are asked every few seconds and need no token.

    Args:
        layers: The outermost first.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Wraps the handler that will serve a call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return absent(method)
        if method.startswith("/grpc."):
            return handler
        serializers = {
            "request_deserializer": _tolerant(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        # Single requests are read as streams of one, which are the same on the wire: grpcio never ends a call that is
        # to bring a single message and brings none. They are read before the layers may refuse the call: its answer
        # would break off a REST client's body, and the client might never see it.
        if handler.response_streaming:
            serve = handler.stream_stream or handler.unary_stream
            streaming = self._streaming(method, serve, single=not handler.request_streaming)
            return grpc.stream_stream_rpc_method_handler(streaming, **serializers)
        serve = handler.stream_unary or handler.unary_unary
        unary = self._unary(method, serve, single=not handler.request_streaming)
        return grpc.stream_unary_rpc_method_handler(unary, **serializers)

    def _unary(self, method: str, serve: Any, *, single: bool) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def behaviour(requests: AsyncIterator[Any], context: _Context) -> Any:
            given = await _only(requests) if single else requests
            call = _call(method, context)
            shown = CallContext(call)
            async with AsyncExitStack() as stack:
                await self._enter(stack, call)
                answer = await _answer(call, serve, await _checked(call, given), shown)
                await shown.send_headers()
                return answer

        return behaviour

    def _streaming(self, method: str, serve: Any, *, single: bool) -> Callable[[Any, _Context], Awaitable[None]]:
        # A coroutine that writes, and no generator: when the client goes away while a message is being sent, the
        # cancellation arrives here, and `aclosing` ends the servicer's generator at once.
        async def behaviour(requests: AsyncIterator[Any], context: _Context) -> None:
            given = await _only(requests) if single else requests
            call = _call(method, context)
            shown = CallContext(call)
            async with AsyncExitStack() as stack:
                await self._enter(stack, call)
                messages = _answer(call, serve, await _checked(call, given), shown)
                if inspect.isawaitable(messages):
                    await messages
                else:
                    async with aclosing(messages) as stream:
                        async for message in stream:
                            await shown.write(message)
                await shown.send_headers()

        return behaviour

    async def _enter(self, stack: AsyncExitStack, call: Call) -> None:
        for layer in self._layers:
            await stack.enter_async_context(layer(call))


def _call(method: str, context: _Context) -> Call:
    metadata = CallMetadata(cast(MetadataPairs, context.invocation_metadata()))
    request_id = metadata.request_id
    address = metadata.client_address(context.peer())
    return Call(method, metadata, context, request_id, address, headers=[("x-request-id", request_id)])


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a request that there is not, until the layers are there to refuse it."""

    error: LlamasteadError


def _tolerant(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Makes bytes that are no message the caller's error; gRPC would call them an internal one and show ours."""
    if decode is None:
        return None

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Unreadable(
                InvalidRequest("The request cannot be read: it holds text that is not UTF-8, or is nested too deeply.")
            )

    return decoded


async def _next(requests: AsyncIterator[Any]) -> Any:
    """The next message; None after the last."""
    try:
        async with asyncio.timeout(_LONGEST_PAUSE):
            return await anext(requests, None)
    except TimeoutError:
        raise RequestTimeout(f"The rest of the request did not come within {_LONGEST_PAUSE:g} seconds.") from None


async def _only(requests: AsyncIterator[Any]) -> Any:
    """The message of a call that brings a single one; in its place, what to refuse the call for."""
    try:
        found = await _next(aiter(requests))
    except RequestTimeout as error:
        return _Unreadable(error)
    if found is None:
        return _Unreadable(
            InvalidRequest("The call brought no message: send one, an empty one if there is nothing to say.")
        )
    return found


async def _checked(call: Call, given: Any) -> Any:
    return _all_checked(call, given) if hasattr(given, "__aiter__") else await call.check(given)


async def _all_checked(call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    first, incoming = True, aiter(requests)
    while (request := await _next(incoming)) is not None:
        yield await call.check(request, first=first)
        first = False


def _answer(call: Call, serve: Any, request: Any, context: CallContext) -> Any:
    """Calls the servicer; what the generated base class raises means that this server has none of its own."""
    try:
        return serve(request, context)
    except NotImplementedError:
        name = call.method.rpartition(".")[2].replace("/", ".")
        raise NotSupported(f"{name} is in the contract, but this server does not offer it.") from None
