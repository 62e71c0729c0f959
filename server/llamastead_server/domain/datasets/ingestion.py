"""Processing datasets: files become chunks, chunks become vectors.

Files are processed a few at a time, so that one is parsed while others are embedded, and small files share
the embedder's batches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llamastead_server.domain.datasets.file_processing import FileProcessing
from llamastead_server.domain.datasets.files import BlobStore, DatasetLocks, FileStore, IndexedChunks
from llamastead_server.domain.datasets.parsing_rules import ParsingRules
from llamastead_server.domain.datasets.processing import EveryFileFailed, ProcessingReport, ProcessingRun
from llamastead_server.domain.datasets.reindexing import restore_if_lost
from llamastead_server.domain.errors import Conflict, NotFound
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import (
    Clock,
    Collection,
    DocumentReader,
    Embedder,
    ProjectStore,
    TaskProgress,
    VectorStore,
)
from llamastead_server.domain.retrieval.embedding_choice import choose_embedder
from llamastead_server.domain.retrieval.retriever import check_embedding

PROCESS_DATASET = "process_dataset"
"""The kind of task that `Ingestion.run_task` runs; its arguments are `dataset` and `file_hash`."""

_log = logging.getLogger("llamastead.datasets")


class Ingestion:
    """Processes datasets.

    Args:
        projects: Where the settings live.
        files: The records of files.
        chunks: Where chunks' text goes.
        blobs: The files' content.
        vectors: Where vectors go.
        embedder: Makes the vectors.
        reader: Parses and chunks files.
        locks: Shared with `Datasets`.
        concurrent_files: Files in work at once.
        batch_size: Chunks embedded and stored at once.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        projects: ProjectStore,
        files: FileStore,
        chunks: IndexedChunks,
        blobs: BlobStore,
        vectors: VectorStore,
        embedder: Embedder,
        reader: DocumentReader,
        locks: DatasetLocks,
        *,
        concurrent_files: int = 4,
        batch_size: int = 64,
        clock: Clock = time.time,
    ) -> None:
        self._projects = projects
        self._files = files
        self._chunks = chunks
        self._vectors = vectors
        self._embedder = embedder
        self._locks = locks
        self._concurrent_files = concurrent_files
        self._clock = clock
        self._processing = FileProcessing(files, chunks, blobs, vectors, reader, clock, batch_size)

    async def process(self, ref: ProjectRef, dataset: str, file_hash: str | None = None) -> ProcessingReport:
        """Processes every file, or one, that is not yet processed with the present settings.

        Cancelling it stops the work; files already processed stay, those in work are as if only uploaded.

        Raises:
            NotFound: There is no such project, dataset or file.
            Conflict: The dataset is in work already, or the database was made with another embedding model.
        """
        if self._locks.is_running(ref, dataset):
            raise Conflict(
                f"Dataset {dataset!r} is being processed. Wait for its end, or use async_processing=true to queue up."
            )
        return await self._process(ref, dataset, file_hash, None)

    async def run_task(
        self, ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress
    ) -> Mapping[str, Any]:
        """The same as a task, with the arguments `dataset` and `file_hash`; it waits for other runs of the dataset.

        Raises:
            EveryFileFailed: There were files, and not one could be read; it carries the result.
        """
        report = await self._process(ref, arguments["dataset"], arguments.get("file_hash"), progress)
        if report.files and report.count("failed") == len(report.files):
            raise EveryFileFailed(report)
        return report.plain()

    async def plan(self, ref: ProjectRef, dataset: str, file_hash: str | None = None) -> ProcessingRun:
        """A run that has not begun: every file pending; raises what the run would raise before its work."""
        return await self._begin(ref, dataset, file_hash, None)

    async def _process(
        self, ref: ProjectRef, dataset: str, file_hash: str | None, progress: TaskProgress | None
    ) -> ProcessingReport:
        async with self._locks.run(ref, dataset) as stop:
            run = await self._begin(ref, dataset, file_hash, progress)
            if self._locks.is_ending(ref, dataset):
                stop.set()
            if await self._embedding_is_new(run.collection, run.embedder):
                await self._chunks.remember_embedding(
                    ref, run.collection.database, run.embedder.model, run.collection.dimension
                )
            await self._vectors.create(run.collection)
            await restore_if_lost(run.collection, self._chunks, self._vectors, run.embedder, self._locks, self._clock)
            work = asyncio.create_task(self._process_files(run))
            telling = asyncio.create_task(run.keep_telling())
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise Conflict(f"Dataset {dataset!r} was deleted while it was processed.")
                await work
            finally:
                for task in (stopped, work, telling):
                    task.cancel()
                await asyncio.wait([work, stopped, telling])
                await run.tell()
                report = run.report()
                _log.info("dataset %s/%s: %s", ref, dataset, report)
        return report

    async def _begin(
        self, ref: ProjectRef, dataset: str, file_hash: str | None, progress: TaskProgress | None
    ) -> ProcessingRun:
        config = await self._projects.config(ref)
        settings = config.dataset(dataset)
        strategy = config.rag.processing_strategy(settings.data_processing_strategy)
        database = config.rag.database(settings.database)
        embedder = (await choose_embedder(self._embedder, database)).embedder
        collection = Collection(ref, database.name, await embedder.dimension())
        await self._embedding_is_new(collection, embedder)
        if file_hash is None:
            found = await self._files.list_files(ref, dataset)
        else:
            one = await self._files.get(ref, dataset, file_hash)
            found = [] if one is None else [one]
        records = [record for record in found if record.visible]
        if file_hash is not None and not records:
            raise NotFound(f"Dataset {dataset!r} holds no file with the hash {file_hash}.")
        return ProcessingRun(collection, ParsingRules(strategy, database.name), records, progress, embedder)

    async def _embedding_is_new(self, collection: Collection, embedder: Embedder) -> bool:
        known = await self._chunks.embedding_of(collection.project, collection.database)
        if known is not None:
            await check_embedding(embedder, collection.database, known)
        return known is None

    async def _process_files(self, run: ProcessingRun) -> None:
        waiting = iter(range(len(run.records)))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrent_files, len(run.records))):
                    group.create_task(self._work_off(run, waiting))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _work_off(self, run: ProcessingRun, waiting: Iterator[int]) -> None:
        for index in waiting:
            stale = run.records[index]
            async with self._locks.file(stale.project, stale.dataset, stale.hash):
                record = await self._files.get(stale.project, stale.dataset, stale.hash)
                if record is None or not record.visible:
                    run.note(index, status="skipped", reason="removed meanwhile")
                else:
                    await self._processing.process(run, index, record)
