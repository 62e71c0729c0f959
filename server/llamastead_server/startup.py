"""Steps of the server's start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from llamastead_server.domain.errors import AlreadyExists, Conflict, LlamasteadError
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import ModelRegistry
from llamastead_server.domain.projects.examples import Examples
from llamastead_server.domain.tasks.tasks import TaskRunner

_log = logging.getLogger("llamastead")


async def all_at_once(*starts: Coroutine[Any, Any, Any]) -> Sequence[Any]:
    """Runs starts side by side; the first failure stops the others and is raised as it is."""
    running = [asyncio.create_task(start) for start in starts]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def preload(models: ModelRegistry) -> None:
    """Loads the default model, so that the first chat need not wait; a server without it still serves the rest."""
    try:
        await models.load(models.default_model)
    except LlamasteadError as error:
        _log.error("the default model is not loaded: %s", error.message)


async def import_example(examples: Examples, tasks: TaskRunner, example: str) -> None:
    """Imports an example as `default/<slug>` and waits until it is processed; one that is there stays as it is,
    unless a kill cut its import short."""
    found = next((entry for entry in await examples.list_examples() if example in (entry.id, entry.slug)), None)
    ref = ProjectRef("default", example if found is None else found.slug)
    try:
        imported = await examples.import_project(example, ref, process=True)
    except AlreadyExists:
        try:
            finished = await examples.finish_project(example, ref)
        except Conflict as error:
            _log.warning("the example stays as it is: %s", error.message)
            return
        if finished is None:
            return
        imported = finished
    for task_id in imported.task_ids:
        async for task in tasks.watch(ref, task_id):
            if task.state == "FAILURE":
                _log.error("processing the example failed: %s", task.error)
