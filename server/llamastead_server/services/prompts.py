"""PromptService: single prompts, as chat turns without a project."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.api import httpbody_pb2

from llamastead.v1 import prompt_pb2 as pb
from llamastead.v1 import prompt_pb2_grpc as pb_grpc
from llamastead_server.domain.chat.answer import TextDelta, TurnFinished
from llamastead_server.domain.chat.prompt_turns import PromptRequest, PromptTurns
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.services import plain
from llamastead_server.services.http_body import STREAM_HEADERS, StreamForm, json_body, late_errors, wanted_form
from llamastead_server.services.metadata import CallMetadata

_Context = grpc.aio.ServicerContext[Any, Any]


class PromptServicer(pb_grpc.PromptServiceServicer):
    """Prompts over gRPC and, through the gateway, REST."""

    def __init__(self, turns: PromptTurns) -> None:
        self._turns = turns

    async def ProcessPrompt(self, request: pb.ProcessPromptRequest, context: _Context) -> pb.ProcessPromptResponse:
        """Answers in one message."""
        if request.stream:
            raise InvalidRequest("This endpoint answers in one message: use /api/stream, or /api/process, to stream.")
        return pb.ProcessPromptResponse(**await self._whole(_parsed(request)))

    async def ProcessHttp(
        self, request: pb.ProcessPromptRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Answers as one JSON object, or as a stream."""
        if not request.stream:
            yield json_body(await self._whole(_parsed(request)))
            return
        async with aclosing(self._stream(request, context)) as bodies:
            async for body in bodies:
                yield body

    async def StreamHttp(
        self, request: pb.ProcessPromptRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Answers as a stream."""
        if request.HasField("stream") and not request.stream:
            raise InvalidRequest("This endpoint streams: leave stream out, or use /api/process_prompt.")
        async with aclosing(self._stream(request, context)) as bodies:
            async for body in bodies:
                yield body

    async def StreamPrompt(
        self, request: pb.ProcessPromptRequest, context: _Context
    ) -> AsyncIterator[pb.StreamPromptResponse]:
        """Answers piece by piece."""
        async with aclosing(self._pieces(_parsed(request))) as pieces:
            async for piece in pieces:
                summary = piece.pop("summary", None)
                shown = None if summary is None else pb.ProcessPromptResponse(**summary)
                yield pb.StreamPromptResponse(**piece, summary=shown)

    async def _stream(
        self, request: pb.ProcessPromptRequest, context: _Context
    ) -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
        metadata = CallMetadata(context.invocation_metadata())
        form = wanted_form(metadata)
        await context.send_initial_metadata(STREAM_HEADERS)
        events = self._events(_parsed(request), form)
        async with aclosing(late_errors(events, metadata.rest_path, form=form)) as bodies:
            async for body in bodies:
                yield body

    async def _events(self, request: PromptRequest, form: StreamForm) -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
        async with aclosing(self._pieces(request)) as pieces:
            async for piece in pieces:
                yield form.event(piece)
        if form.end:
            yield form.body(form.end)

    async def _pieces(self, request: PromptRequest) -> AsyncGenerator[dict[str, Any], None]:
        began = time.monotonic()
        answer: list[str] = []
        async with self._turns.start(request) as turn:
            async for event in turn:
                if isinstance(event, TextDelta):
                    yield {"chunk": event.text, "index": len(answer)}
                    answer.append(event.text)
                elif isinstance(event, TurnFinished):
                    summary = _summary(request, "".join(answer), event, began)
                    yield {"chunk": "", "index": len(answer), "summary": summary}

    async def _whole(self, request: PromptRequest) -> dict[str, Any]:
        began = time.monotonic()
        async with self._turns.start(request) as turn:
            deltas, end = await turn.whole()
        text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        return _summary(request, text, end, began)


def _parsed(request: pb.ProcessPromptRequest) -> PromptRequest:
    return PromptRequest.parse(plain.given(request))


def _summary(request: PromptRequest, text: str, end: TurnFinished, began: float) -> dict[str, Any]:
    return {
        "response": text,
        "tokens_used": end.usage.total_tokens,
        "processing_time": round(time.monotonic() - began, 6),
        "model_used": request.model_used,
        "finish_reason": end.reason,
    }
