"""TaskService: work that runs in the background."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf import json_format, struct_pb2

from llamastead.v1 import task_pb2 as pb
from llamastead.v1 import task_pb2_grpc as pb_grpc
from llamastead_server.domain.names import project_ref
from llamastead_server.domain.task_records import Task
from llamastead_server.domain.tasks import TaskRunner


class TaskServicer(pb_grpc.TaskServiceServicer):
    """Background tasks over gRPC and, through the gateway, REST."""

    def __init__(self, tasks: TaskRunner) -> None:
        self._tasks = tasks

    async def GetTask(  # noqa: N802
        self, request: pb.GetTaskRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.Task:
        """Returns the state of a task."""
        task = await self._tasks.get(project_ref(request.namespace, request.project), request.task_id)
        return task_message(task)

    async def WatchTask(  # noqa: N802
        self, request: pb.WatchTaskRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> AsyncIterator[pb.Task]:
        """Streams a task until it has ended."""
        async for task in self._tasks.watch(project_ref(request.namespace, request.project), request.task_id):
            yield task_message(task)


def task_message(task: Task) -> pb.Task:
    """A task as the API shows it."""
    return pb.Task(
        task_id=task.id,
        state=task.state,
        meta=_meta(task.meta),
        result=_value(task.result),
        error=_value(task.error),
        traceback=_value(task.traceback),
        cancelled=task.cancelled,
    )


def _meta(meta: Mapping[str, Any]) -> pb.TaskMeta:
    current, total = int(meta.get("current", 0)), int(meta.get("total", 0))
    return pb.TaskMeta(
        current=current,
        total=total,
        progress=100.0 * current / total if total else 0.0,
        message=meta.get("message", ""),
        files=[pb.TaskFile(**file) for file in meta.get("files", ())],
    )


def _value(plain: Any) -> struct_pb2.Value:
    return json_format.ParseDict(plain, struct_pb2.Value())
