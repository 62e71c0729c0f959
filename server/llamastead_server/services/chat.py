"""ChatService: thin faces of one chat turn, in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import grpc
from google.api import httpbody_pb2
from google.protobuf.json_format import ParseDict

from llamastead.v1 import chat_pb2, chat_pb2_grpc
from llamastead_server.domain import names
from llamastead_server.domain.chat.answer import CallDelta, ChoiceFinished, TextDelta
from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.chat.sessions import Sessions
from llamastead_server.domain.chat.turn import ChatTurn, TurnStarted
from llamastead_server.domain.chat.turns import ChatTurns, SessionChoice
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.ports import ProjectStore
from llamastead_server.domain.retrieval.sources import Source
from llamastead_server.services import plain
from llamastead_server.services.chat_json import CompletionHead, message_json, source_json, usage_json
from llamastead_server.services.http_body import DONE, STREAM_HEADERS, json_body, late_errors, sse_event

_Context = grpc.aio.ServicerContext[object, object]
_NOT_IN_BODY = {"namespace", "project", "session_id", "no_session"}


class ChatServicer(chat_pb2_grpc.ChatServiceServicer):
    """Chats, and their sessions."""

    def __init__(self, turns: ChatTurns, sessions: Sessions, projects: ProjectStore) -> None:
        self._turns = turns
        self._sessions = sessions
        self._projects = projects

    async def CreateChatCompletionHttp(
        self, request: chat_pb2.CreateChatCompletionRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Answers as one JSON object, or as Server-Sent Events."""
        chat = _chat_request(request)
        async with self._turns.start(self._project(request), chat, self._session(request, context)) as turn:
            head = CompletionHead.of(turn.started.model)
            if chat.stream:
                await context.send_initial_metadata(_headers(turn.started))
                async with aclosing(late_errors(_events(head, chat, turn))) as bodies:
                    async for body in bodies:
                        yield body
                return
            deltas, end = await turn.whole()
            sources = _sources(chat, turn.started)
            # Headers wait for the end: until then an error can still be an HTTP status.
            await context.send_initial_metadata(_headers(turn.started))
            yield json_body(head.completion(deltas, end, logprobs=chat.logprobs, sources=sources))

    async def CreateChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: _Context
    ) -> chat_pb2.ChatCompletion:
        """Answers in one message."""
        if request.stream:
            raise InvalidRequest("This call answers in one message: use StreamChatCompletion to stream.")
        chat = _chat_request(request)
        async with self._turns.start(self._project(request), chat, self._session(request, context)) as turn:
            deltas, end = await turn.whole()
            await context.send_initial_metadata(_headers(turn.started))
            completion = CompletionHead.of(turn.started.model).completion(
                deltas, end, logprobs=chat.logprobs, sources=_sources(chat, turn.started)
            )
            message = ParseDict(completion, chat_pb2.ChatCompletion())
            if turn.started.session_id is not None:
                message.session_id = turn.started.session_id
            return message

    async def StreamChatCompletion(
        self, request: chat_pb2.CreateChatCompletionRequest, context: _Context
    ) -> AsyncIterator[chat_pb2.ChatCompletionChunk]:
        """Answers token by token."""
        chat = _chat_request(request)
        async with self._turns.start(self._project(request), chat, self._session(request, context)) as turn:
            await context.send_initial_metadata(_headers(turn.started))
            head = CompletionHead.of(turn.started.model)
            sources = _sources(chat, turn.started)
            if sources is not None:
                yield _chunk(turn.started, {**head.first(0), "choices": [], "sources": list(map(source_json, sources))})
            yield _chunk(turn.started, head.first(0))
            async for event in turn:
                if isinstance(event, TextDelta):
                    yield _chunk(turn.started, head.text(event, logprobs=chat.logprobs))
                elif isinstance(event, CallDelta):
                    for part in head.call(event):
                        yield _chunk(turn.started, part)
                elif isinstance(event, ChoiceFinished):
                    yield _chunk(turn.started, head.last(event))
                    yield _chunk(turn.started, head.first(event.choice + 1))
                else:
                    usage = {"usage": usage_json(event.usage)} if chat.include_usage else {}
                    yield _chunk(turn.started, {**head.last(event), **usage})

    def _project(self, request: chat_pb2.CreateChatCompletionRequest) -> names.ProjectRef | None:
        return names.project_ref(request.namespace, request.project)

    def _session(self, request: chat_pb2.CreateChatCompletionRequest, context: _Context) -> SessionChoice:
        headers = dict(context.invocation_metadata() or ())
        session_id = str(headers.get("x-session-id") or request.session_id) or None
        return SessionChoice(session_id, "x-no-session" in headers or request.no_session)

    async def GetChatHistory(
        self, request: chat_pb2.GetChatHistoryRequest, context: _Context
    ) -> chat_pb2.GetChatHistoryResponse:
        """Gives a session's messages; one that does not exist has none."""
        ref = names.project_ref(request.namespace, request.project)
        names.session_id(request.session_id)
        await self._projects.get(ref)
        history = await self._sessions.history(ref, request.session_id)
        return chat_pb2.GetChatHistoryResponse(
            messages=[ParseDict(message_json(message), chat_pb2.ChatMessage()) for message in history]
        )

    async def DeleteChatSession(
        self, request: chat_pb2.DeleteChatSessionRequest, context: _Context
    ) -> chat_pb2.DeleteChatSessionResponse:
        """Deletes a session."""
        ref = names.project_ref(request.namespace, request.project)
        names.session_id(request.session_id)
        await self._projects.get(ref)
        await self._sessions.delete(ref, request.session_id)
        return chat_pb2.DeleteChatSessionResponse(message=f"Session {request.session_id} deleted")

    async def DeleteAllChatSessions(
        self, request: chat_pb2.DeleteAllChatSessionsRequest, context: _Context
    ) -> chat_pb2.DeleteAllChatSessionsResponse:
        """Deletes all sessions of a project."""
        ref = names.project_ref(request.namespace, request.project)
        await self._projects.get(ref)
        count = await self._sessions.delete_all(ref)
        return chat_pb2.DeleteAllChatSessionsResponse(message=f"Deleted {count} session(s)", count=count)


async def _events(
    head: CompletionHead, chat: ChatRequest, turn: ChatTurn
) -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
    sources = _sources(chat, turn.started)
    if sources is not None:
        yield sse_event({"type": "sources", "sources": [source_json(source) for source in sources]})
    yield sse_event(head.first(0))
    async for event in turn:
        if isinstance(event, TextDelta):
            yield sse_event(head.text(event, logprobs=chat.logprobs))
        elif isinstance(event, CallDelta):
            for part in head.call(event):
                yield sse_event(part)
        elif isinstance(event, ChoiceFinished):
            yield sse_event(head.last(event))
            yield sse_event(head.first(event.choice + 1))
        else:
            yield sse_event(head.last(event))
            if chat.include_usage:
                yield sse_event(head.usage(event.usage))
            yield DONE


def _chat_request(request: chat_pb2.CreateChatCompletionRequest) -> ChatRequest:
    body = plain.given(request)
    return ChatRequest.parse({key: value for key, value in body.items() if key not in _NOT_IN_BODY})


def _headers(started: TurnStarted) -> tuple[tuple[str, str], ...]:
    headers = list(STREAM_HEADERS)
    if started.session_id is not None:
        headers.append(("x-session-id", started.session_id))
    if str(started.trimmed):
        headers.append(("x-llamastead-trimmed", str(started.trimmed)))
    return tuple(headers)


def _sources(chat: ChatRequest, started: TurnStarted) -> Sequence[Source] | None:
    return started.sources[: chat.sources_limit] if chat.include_sources else None


def _chunk(started: TurnStarted, chunk: dict[str, object]) -> chat_pb2.ChatCompletionChunk:
    message = ParseDict(chunk, chat_pb2.ChatCompletionChunk())
    if started.session_id is not None:
        message.session_id = started.session_id
    return message
