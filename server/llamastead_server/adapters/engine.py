"""An engine behind a worker's socket, with bounded admission."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from llamastead.internal.v1 import engine_pb2, engine_pb2_grpc
from llamastead_server.adapters.generation_meter import GenerationMeter
from llamastead_server.adapters.worker_process import WorkerProcess
from llamastead_server.domain.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, Overloaded
from llamastead_server.domain.models.generation import (
    Delta,
    Finished,
    GenerationEvent,
    GenerationRequest,
    Message,
    ModelCard,
    Sampling,
    Started,
    TokenCount,
    TokenLogprob,
    Usage,
)
from llamastead_server.domain.operations.meters import Meters, NoMeters

_MOST_TOKENS = 2**31 - 1
_SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip


class WorkerEngine:
    """Implements `domain.ports.Engine` over an engine worker.

    A worker that hangs is killed by its supervision, which ends the calls to it here with `EngineFailed`.

    Args:
        card: The model it holds.
        worker: The worker process.
        context_length: Tokens in one request's window.
        slots: Requests the worker decodes at once.
        queue: Requests that may wait for a slot; one more is refused.
        restart_wait: Longest time a request waits for a worker that is being restarted, in seconds.
        meters: Where each generation is measured.
    """

    def __init__(
        self,
        card: ModelCard,
        worker: WorkerProcess,
        *,
        context_length: int,
        slots: int,
        queue: int,
        restart_wait: float = 30.0,
        meters: Meters | None = None,
    ) -> None:
        self._card = card
        self._worker = worker
        self._context_length = context_length
        self.slots = slots
        self._slots = asyncio.Semaphore(slots)
        self._capacity = slots + queue
        self._admitted = 0
        self._running = 0
        self._restart_wait = restart_wait
        self._meters = meters or NoMeters()

    @property
    def card(self) -> ModelCard:
        """The model."""
        return self._card

    @property
    def worker(self) -> WorkerProcess:
        """The supervised process, for health reports."""
        return self._worker

    @property
    def context_length(self) -> int:
        """Tokens in one request's window."""
        return self._context_length

    @property
    def native_tool_calls(self) -> bool:
        """Never: the worker gives the text that the model writes for a call."""
        return False

    @property
    def active_requests(self) -> int:
        """Requests running or waiting."""
        return self._admitted

    @property
    def running_requests(self) -> int:
        """Requests that have a slot."""
        return self._running

    @property
    def waiting_requests(self) -> int:
        """Requests that wait for one."""
        return self._admitted - self._running

    @property
    def worker_pid(self) -> int | None:
        """Process id of the living worker."""
        return self._worker.pid

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Runs one completion; see `domain.ports.Engine`."""
        if self._admitted >= self._capacity:
            raise Overloaded(
                f"The model {self._card.name!r} already has {self._admitted} requests; try again shortly.",
                retry_after=2.0,
            )
        self._admitted += 1
        meter = GenerationMeter(self._meters, self._card.name)
        try:
            async with self._slots, self._slot():
                stub = await self._stub()
                call = stub.Generate(_request(request))
                try:
                    async for response in call:
                        event = _event(response)
                        meter.event(event, response.delta.tokens)
                        yield event
                except grpc.aio.AioRpcError as error:
                    meter.failed()
                    raise self._failure(error) from None
                except asyncio.CancelledError:
                    # The supervision closes a dead worker's channel, which cancels its calls; that is the
                    # worker's failure unless this task itself was cancelled.
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise
                    meter.failed()
                    raise self._died() from None
                finally:
                    call.cancel()
        finally:
            self._admitted -= 1
            meter.close()

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> TokenCount:
        """Counts a conversation as the model's template renders it."""
        stub = await self._stub()
        request = engine_pb2.CountTokensRequest(messages=_messages(messages), tools=_tools(tools))
        try:
            answer = await stub.CountTokens(request)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        return TokenCount(answer.total, tuple(answer.per_message))

    async def status(self) -> engine_pb2.GetStatusResponse:
        """The worker's own figures.

        Raises:
            EngineFailed: It does not answer.
        """
        try:
            return await engine_pb2_grpc.EngineServiceStub(self._worker.channel).GetStatus(
                engine_pb2.GetStatusRequest(), timeout=5.0
            )
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None

    async def _stub(self) -> engine_pb2_grpc.EngineServiceAsyncStub:
        await self._worker.wait_ready(self._restart_wait)
        return engine_pb2_grpc.EngineServiceStub(self._worker.channel)

    def _failure(self, error: grpc.aio.AioRpcError) -> Exception:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            sizes = dict(cast("Iterable[tuple[str, str]]", error.trailing_metadata() or ()))
            if "x-prompt-tokens" in sizes:
                return ContextLengthExceeded(int(sizes["x-prompt-tokens"]), int(sizes["x-context-length"]))
            return InvalidRequest(f"Model {self._card.name!r}: {error.details() or 'the engine refused the request.'}")
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(error.details() or "The engine is busy.", retry_after=2.0)
        if error.code() is grpc.StatusCode.INTERNAL:
            return EngineFailed(f"The engine of model {self._card.name!r} failed: {error.details()}", retry_after=1.0)
        return self._died()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _died(self) -> EngineFailed:
        if self._worker.stopping:
            return EngineFailed(
                f"The model {self._card.name!r} was unloaded before its answer was complete; send the request again.",
                retry_after=2.0,
            )
        self._worker.doubt()
        return EngineFailed(
            f"The engine worker of model {self._card.name!r} died or hung while it served the request. "
            "It is being restarted; try again shortly.",
            retry_after=2.0,
        )


def _request(request: GenerationRequest) -> engine_pb2.GenerateRequest:
    return engine_pb2.GenerateRequest(
        messages=_messages(request.messages),
        prompt=request.prompt or "",
        sampling=_sampling(request.sampling),
        # The engines count in 31 bits; any window is full long before.
        max_tokens=min(request.max_tokens or 0, _MOST_TOKENS),
        stop=request.stop,
        top_logprobs=request.top_logprobs,
        json_schema=request.json_schema or "",
        json_object=request.json_object,
        tools=_tools(request.tools),
        thinking=request.thinking,
    )


def _sampling(sampling: Sampling) -> engine_pb2.Sampling:
    given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(sampling, name)) is not None}
    return engine_pb2.Sampling(**given, logit_bias=sampling.logit_bias)


def _messages(messages: Sequence[Message]) -> list[engine_pb2.Message]:
    return [
        engine_pb2.Message(
            role=message.role,
            content=message.content,
            tool_calls=[
                engine_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls
            ],
            tool_call_id=message.tool_call_id or "",
        )
        for message in messages
    ]


def _tools(tools: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(tools, ensure_ascii=False) if tools else ""


def _event(response: engine_pb2.GenerateResponse) -> GenerationEvent:
    kind = response.WhichOneof("event")
    if kind == "delta":
        return Delta(response.delta.text, tuple(_logprob(entry) for entry in response.delta.logprobs))
    if kind == "finished":
        done = response.finished
        usage = Usage(done.prompt_tokens, done.completion_tokens, done.cached_tokens)
        return Finished("length" if done.reason == "length" else "stop", usage)
    return Started()


def _logprob(entry: engine_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(entry.token, entry.logprob, entry.token_bytes, tuple(_logprob(other) for other in entry.top))
