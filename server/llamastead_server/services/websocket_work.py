"""What clients of the WebSocket can ask for, over the same domain as the other endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping

from llamastead_server.domain import names
from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.chat.answer import CallDelta, TextDelta, TurnFinished
from llamastead_server.domain.chat.request import ChatRequest
from llamastead_server.domain.chat.turns import ChatTurns, SessionChoice
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.ports import ModelRegistry
from llamastead_server.domain.tasks.tasks import TaskRunner
from llamastead_server.services import frames, plain
from llamastead_server.services.chat_json import call_json, logprobs_json, source_json, usage_json
from llamastead_server.services.method_access import MethodAccess, access
from llamastead_server.services.tasks import task_message

_LOOKS = 0.1
"""Seconds between two looks at the state of a model that is being loaded."""

# Frames are held to the rules of the RPCs that do the same.
_RPCS = {
    frames.Chat: "/llamastead.v1.ChatService/StreamChatCompletion",
    frames.TaskWatch: "/llamastead.v1.TaskService/WatchTask",
    frames.ModelLoad: "/llamastead.v1.ModelService/LoadModel",
    frames.MetricsSubscribe: "/llamastead.v1.OperationsService/WatchMetrics",
}

Answer = (
    frames.Started
    | frames.Sources
    | frames.Delta
    | frames.ToolCall
    | frames.TaskState
    | frames.ModelState
    | frames.Metrics
    | frames.Done
)


def rules(frame: frames.Work) -> MethodAccess:
    """What the contract declares about the frame's RPC."""
    return access(_RPCS[type(frame)])


def demand(caller: Principal, frame: frames.Work) -> None:
    """Raises `PermissionDenied` unless the caller may send the frame."""
    found = rules(frame)
    found.demand_scope(caller)
    if isinstance(frame, frames.Chat | frames.TaskWatch):
        caller.demand_project(frame.namespace, frame.project)
    elif not found.any_project:
        caller.demand_all_projects()


def _agree(frame: frames.Chat) -> None:
    """Raises `InvalidRequest` when the body names another project or session than its frame does."""
    for name in ("namespace", "project", "session_id", "no_session"):
        if name in frame.request and frame.request[name] != getattr(frame, name):
            raise InvalidRequest(
                f"`request.{name}` contradicts the frame's `{name}`: leave it out of the request.",
                details={"field": f"request.{name}"},
            )


class WebSocketWork:
    """Does what frames ask for.

    Args:
        turns: Chat turns.
        tasks: Background tasks.
        models: The models.
        metrics: Gives the present metrics by name.
    """

    def __init__(
        self, turns: ChatTurns, tasks: TaskRunner, models: ModelRegistry, metrics: Callable[[], Mapping[str, float]]
    ) -> None:
        self._turns = turns
        self._tasks = tasks
        self._models = models
        self._metrics = metrics

    def answer(self, frame: frames.Work) -> AsyncGenerator[Answer, None]:
        """The frames that answer one; closing the iterator stops the work."""
        if isinstance(frame, frames.Chat):
            return self._chat(frame)
        if isinstance(frame, frames.TaskWatch):
            return self._task(frame)
        if isinstance(frame, frames.ModelLoad):
            return self._load(frame)
        return self._ticks(frame)

    async def _chat(self, frame: frames.Chat) -> AsyncGenerator[Answer, None]:
        if "stream" in frame.request:
            raise InvalidRequest("Leave out `stream`: over the WebSocket the answer always streams.")
        _agree(frame)
        chat = ChatRequest.parse(frame.request)
        if chat.n > 1:
            raise InvalidRequest(
                "Over the WebSocket a chat has one answer: leave `n` out, or send the frame again.",
                details={"field": "request.n"},
            )
        ref = names.project_ref(frame.namespace, frame.project)
        async with self._turns.start(ref, chat, SessionChoice(frame.session_id, frame.no_session)) as turn:
            started = turn.started
            yield frames.Started(
                id=frame.id,
                model=started.model,
                session_id=started.session_id,
                trimmed=str(started.trimmed) or None,
            )
            if chat.include_sources:
                sources = [source_json(source) for source in started.sources[: chat.sources_limit]]
                yield frames.Sources(id=frame.id, sources=sources)
            async for event in turn:
                if isinstance(event, TextDelta):
                    logprobs = logprobs_json(event.logprobs) if chat.logprobs else None
                    yield frames.Delta(id=frame.id, text=event.text, logprobs=logprobs)
                elif isinstance(event, CallDelta):
                    yield frames.ToolCall(id=frame.id, index=event.index, tool_call=call_json(event.call))
                elif isinstance(event, TurnFinished):
                    yield frames.Done(id=frame.id, finish_reason=event.reason, usage=usage_json(event.usage))

    async def _task(self, frame: frames.TaskWatch) -> AsyncGenerator[Answer, None]:
        ref = names.project_ref(frame.namespace, frame.project)
        async for task in self._tasks.watch(ref, frame.task_id):
            yield frames.TaskState(id=frame.id, task=plain.to_json(task_message(task)))
        yield frames.Done(id=frame.id)

    async def _load(self, frame: frames.ModelLoad) -> AsyncGenerator[Answer, None]:
        name = self._models.resolve(frame.model).name
        loading = asyncio.create_task(self._models.load(frame.model))
        shown = ""
        try:
            while True:
                await asyncio.wait([loading], timeout=_LOOKS)
                state = self._models.resolve(name).state
                if state != shown:
                    shown = state
                    yield frames.ModelState(id=frame.id, model=name, state=state)
                if loading.done():
                    loading.result()
                    yield frames.Done(id=frame.id)
                    return
        finally:
            # Whoever else waits for the model still gets it.
            loading.cancel()
            await asyncio.wait([loading])

    async def _ticks(self, frame: frames.MetricsSubscribe) -> AsyncGenerator[Answer, None]:
        while True:
            yield frames.Metrics(id=frame.id, timestamp=time.time(), metrics=dict(self._metrics()))
            await asyncio.sleep(frame.interval_seconds)
