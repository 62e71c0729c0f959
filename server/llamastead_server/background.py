"""Puts together the work that goes on in the background: the tasks, and the batches that run among them."""

from __future__ import annotations

import time

from llamastead_server.adapters.batch_folder import BatchFolder
from llamastead_server.adapters.batch_store import SqlBatchStore
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.model_registry import LocalModelRegistry
from llamastead_server.adapters.task_store import SqlTaskStore
from llamastead_server.domain.datasets.ingestion import PROCESS_DATASET, Ingestion
from llamastead_server.domain.datasets.reindexing import REINDEX_DATABASE, Reindexing
from llamastead_server.domain.tasks.batch_run import BATCHES, RUN_BATCHES, BatchRuns, LineAnswers
from llamastead_server.domain.tasks.batches import Batches
from llamastead_server.domain.tasks.tasks import TaskRunner
from llamastead_server.settings import Settings


def background(
    settings: Settings,
    database: Database,
    models: LocalModelRegistry,
    ingestion: Ingestion,
    reindexing: Reindexing,
    lines: LineAnswers,
) -> tuple[TaskRunner, Batches]:
    """The runner of all tasks, and the batches; neither is started."""
    store = SqlBatchStore(database)
    content = BatchFolder(settings.data_dir, max_bytes=settings.max_upload_bytes)

    async def wake() -> None:
        await tasks.submit(BATCHES, RUN_BATCHES, {})

    runs = BatchRuns(store, content, lines, lambda: models.has_room, wake, time.time)
    functions = {PROCESS_DATASET: ingestion.run_task, REINDEX_DATABASE: reindexing.run_task, RUN_BATCHES: runs.run}
    tasks = TaskRunner(SqlTaskStore(database), functions, time.time, alone=database.alone)
    return tasks, Batches(store, content, wake, time.time)
