"""Processing: files become chunks, chunks become vectors.

Files are processed a few at a time, so that one is parsed while others are embedded, and small files share
the embedder's batches. A file counts as processed in the transaction that writes its chunks; whatever
interrupts it before that leaves it as it was uploaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llamastead_server.domain.datasets.document_chunks import document_chunks
from llamastead_server.domain.datasets.file_removal import clear
from llamastead_server.domain.datasets.files import (
    BlobStore,
    ContentGone,
    DatasetLocks,
    DocumentError,
    FileRecord,
    FileStore,
    IndexedChunks,
)
from llamastead_server.domain.datasets.parsing_rules import ParsingRules
from llamastead_server.domain.datasets.processing import EveryFileFailed, ProcessingReport, ProcessingRun
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.datasets.reindexing import restore_if_lost
from llamastead_server.domain.errors import Conflict, LlamasteadError, NotFound, ValidationFailed
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import (
    Chunk,
    Collection,
    DocumentReader,
    Embedder,
    ParsedDocument,
    ProjectStore,
    TaskProgress,
    VectorStore,
)
from llamastead_server.domain.retrieval.embedding_choice import choose_embedder
from llamastead_server.domain.retrieval.retriever import check_embedding

PROCESS_DATASET = "process_dataset"
"""The kind of task that `Ingestion.run_task` runs; its arguments are `dataset` and `file_hash`."""

_log = logging.getLogger("llamastead.datasets")
_CHUNKER_VERSION = 2
"""Raise it when chunks of the same text change: files are then processed again."""


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
    ) -> None:
        self._projects = projects
        self._files = files
        self._chunks = chunks
        self._blobs = blobs
        self._vectors = vectors
        self._embedder = embedder
        self._reader = reader
        self._locks = locks
        self._concurrent_files = concurrent_files
        self._batch_size = batch_size

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
            await restore_if_lost(run.collection, self._chunks, self._vectors, run.embedder, self._locks)
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
        records = [
            record
            for record in await self._files.list_files(ref, dataset)
            if record.visible and file_hash in (None, record.hash)
        ]
        if file_hash is not None and not records:
            raise NotFound(f"Dataset {dataset!r} holds no file with the hash {file_hash}.")
        return ProcessingRun(collection, ParsingRules(strategy), records, progress, embedder)

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
                    await self._process_file(run, index, record)

    async def _process_file(self, run: ProcessingRun, index: int, record: FileRecord) -> None:
        try:
            readings = run.strategy.settings(record.filename, record.mime_type, record.parser_overrides)
        except (DocumentError, ValidationFailed) as error:
            await self._fail(run, index, record, error)
            return
        made_with = self._fingerprint(run, readings)
        size = readings[0].chunking.size
        if record.status == "processed" and record.processed_with == made_with:
            run.note(
                index,
                status="skipped",
                reason="already processed",
                parser=record.parser,
                extractors=record.extractors,
                chunks=record.chunk_count,
                chunk_size=record.chunk_size,
                embedder=record.embedding_model,
            )
            return
        if not await self._blobs.exists(record.project, record.hash):
            await self._fail(run, index, record, ContentGone(record.filename))
            return
        run.note(index, status="processing", chunk_size=size, embedder=run.embedder.model)
        working = replace(record, status="processing", error=None, chunk_count=0, processed_with=None)
        await self._files.put(working)
        settled = False
        try:
            if record.status != "uploaded":
                await clear(record, self._chunks, self._vectors)
            document = await self._read(record, readings)
            chunks = await self._index(run, index, record, document)
            processed = replace(
                working,
                status="processed",
                parser=document.parser,
                extractors=tuple(document.extractors),
                facts=document.facts,
                chunk_count=len(chunks),
                chunk_size=size,
                embedding_model=run.embedder.model,
                processed_with=made_with,
            )
            await self._chunks.complete(run.collection.database, processed, chunks)
            settled = True
            run.note(
                index,
                status="processed",
                parser=document.parser,
                extractors=tuple(document.extractors),
                chunks=len(chunks),
                metadata=document.facts,
            )
        except DocumentError as error:
            settled = True
            await self._fail(run, index, working, error)
        finally:
            if not settled:
                await asyncio.shield(self._revert(run, index, working))

    async def _read(self, record: FileRecord, readings: Sequence[ReadSettings]) -> ParsedDocument:
        """Reads a file by the first settings, and when that fails by the fallback's."""
        path = self._blobs.path(record.project, record.hash)
        try:
            return await self._reader.read(path, record.filename, readings[0])
        except DocumentError:
            for reading in readings[1:]:
                with contextlib.suppress(DocumentError):
                    return await self._reader.read(path, record.filename, reading)
            raise

    async def _index(
        self, run: ProcessingRun, index: int, record: FileRecord, document: ParsedDocument
    ) -> Sequence[Chunk]:
        """Embeds and stores a file's chunks, made batch by batch: all at once would hold the event loop."""
        chunks: list[Chunk] = []
        for start in range(0, len(document.pieces), self._batch_size):
            batch = document_chunks(record, document, start, start + self._batch_size)
            vectors = await run.embedder.embed_passages([chunk.text for chunk in batch])
            await self._vectors.upsert(run.collection, batch, vectors)
            chunks += batch
            run.note(index, chunks=len(chunks))
        return chunks

    async def _fail(self, run: ProcessingRun, index: int, record: FileRecord, error: LlamasteadError) -> None:
        if record.status == "processed":
            await clear(record, self._chunks, self._vectors)
        await self._files.put(replace(record, status="failed", error=error.message, chunk_count=0, processed_with=None))
        run.note(index, status="failed", error=error.message, chunks=None)

    async def _revert(self, run: ProcessingRun, index: int, working: FileRecord) -> None:
        await clear(working, self._chunks, self._vectors)
        await self._files.put(replace(working, status="uploaded"))
        run.note(index, status="pending", chunks=None)

    def _fingerprint(self, run: ProcessingRun, readings: Sequence[ReadSettings]) -> str:
        made_of = [
            _CHUNKER_VERSION, [reading.plain() for reading in readings], run.embedder.model, run.collection.database,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
