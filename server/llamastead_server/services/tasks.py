"""TaskService: work that runs in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import json_format, struct_pb2

from llamastead.v1 import task_pb2 as pb
from llamastead.v1 import task_pb2_grpc as pb_grpc
from llamastead_server.domain.names import project_ref
from llamastead_server.domain.tasks.records import Cancellation, Task
from llamastead_server.domain.tasks.tasks import TaskRunner
from llamastead_server.services.interceptors import recheck


class TaskServicer(pb_grpc.TaskServiceServicer):
    """Background tasks over gRPC and, through the gateway, REST."""

    def __init__(self, tasks: TaskRunner) -> None:
        self._tasks = tasks

    async def GetTask(self, request: pb.GetTaskRequest, context: grpc.aio.ServicerContext[object, object]) -> pb.Task:
        """Returns the state of a task."""
        task = await self._tasks.get(project_ref(request.namespace, request.project), request.task_id)
        # In a thread: for thousands of files it would hold the event loop.
        return await asyncio.to_thread(task_message, task)

    async def WatchTask(
        self, request: pb.WatchTaskRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[pb.Task]:
        """Streams a task until it has ended."""
        async for task in self._tasks.watch(project_ref(request.namespace, request.project), request.task_id):
            recheck(context)
            yield await asyncio.to_thread(task_message, task)

    async def CancelTask(
        self, request: pb.CancelTaskRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.CancelTaskResponse:
        """Cancels a task and answers when its work has stopped."""
        return cancel_message(
            await self._tasks.cancel(project_ref(request.namespace, request.project), request.task_id)
        )


def cancel_message(cancellation: Cancellation) -> pb.CancelTaskResponse:
    """How cancelling went, as the API shows it."""
    task, done = cancellation.after, cancellation.done
    if done:
        message = "The task was cancelled." if cancellation.stopped else "The task is cancelled and stops in seconds."
    else:
        message = "The task was cancelled before." if task.cancelled else "The task has ended already."
    return pb.CancelTaskResponse(
        message=message,
        task_id=task.id,
        cancelled=task.cancelled,
        pending_tasks_cancelled=cancellation.waiting,
        running_tasks_at_cancel=cancellation.in_work,
        files_reverted=cancellation.reverted,
        files_failed_to_revert=cancellation.not_reverted,
        errors=[
            f"{file['filename']} was still in work when the task was left; it is put right at the next start."
            for file in task.meta.get("files", ())
            if done and file["state"] == "processing"
        ],
        already_completed=not done and not task.cancelled,
        already_cancelled=not done and task.cancelled,
    )


def task_message(task: Task) -> pb.Task:
    """A task as the API shows it."""
    return pb.Task(
        task_id=task.id,
        state=task.state,
        meta=_meta(task),
        result=_value(task.result),
        error=_value(task.error),
        traceback=_value(task.traceback),
        cancelled=task.cancelled,
    )


def _meta(task: Task) -> pb.TaskMeta:
    meta = task.meta
    current, total = int(meta.get("current", 0)), int(meta.get("total", 0))
    return pb.TaskMeta(
        current=current,
        total=total,
        progress=100.0 * current / total if total else 0.0,
        message=meta.get("message", ""),
        files=[pb.TaskFile(task_id=task.id, **file) for file in meta.get("files", ())],
    )


def _value(plain: Any) -> struct_pb2.Value:
    return json_format.ParseDict(plain, struct_pb2.Value())
