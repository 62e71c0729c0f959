"""Processing: files become chunks, chunks become vectors.

Files are processed a few at a time, so that one is parsed while others are embedded, and small files share
the embedder's batches. A file counts as processed in the transaction that writes its chunks; whatever
interrupts it before that leaves it as it was uploaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from llamastead_server.domain.chunking import ChunkSettings
from llamastead_server.domain.datasets import clear
from llamastead_server.domain.embedding_choice import choose_embedder
from llamastead_server.domain.errors import Conflict, LlamasteadError
from llamastead_server.domain.files import BlobStore, DatasetLocks, DocumentError, FileRecord, FileStore, IndexedChunks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.parsing_rules import ParsingRules
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
from llamastead_server.domain.processing import ProcessingReport, ProcessingRun
from llamastead_server.domain.reindexing import restore_if_lost
from llamastead_server.domain.retrieval import check_embedding

PROCESS_DATASET = "process_dataset"
"""The kind of task that `Ingestion.run_task` runs; its argument is `dataset`."""

_CHUNKER_VERSION = 1
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

    async def process(self, ref: ProjectRef, dataset: str) -> ProcessingReport:
        """Processes every file that is not yet processed with the present settings.

        Cancelling it stops the work; files already processed stay, those in work are as if only uploaded.

        Raises:
            NotFound: There is no such project or dataset.
            Conflict: The dataset is in work already, or the database was made with another embedding model.
        """
        if self._locks.is_running(ref, dataset):
            raise Conflict(
                f"Dataset {dataset!r} is being processed. Wait for its end, or use async_processing=true to queue up."
            )
        return await self._process(ref, dataset, None)

    async def run_task(
        self, ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress
    ) -> Mapping[str, Any]:
        """The same as a task, with the argument `dataset`; it waits for other runs of the dataset."""
        return (await self._process(ref, arguments["dataset"], progress)).plain()

    async def plan(self, ref: ProjectRef, dataset: str) -> ProcessingReport:
        """What a run would work on: every file, pending; raises what the run would raise before its work."""
        run = await self._begin(ref, dataset, None)
        return run.report()

    async def _process(self, ref: ProjectRef, dataset: str, progress: TaskProgress | None) -> ProcessingReport:
        async with self._locks.run(ref, dataset) as stop:
            run = await self._begin(ref, dataset, progress)
            if self._locks.is_ending(ref, dataset):
                stop.set()
            if await self._embedding_is_new(run.collection, run.embedder):
                await self._chunks.remember_embedding(
                    ref, run.collection.database, run.embedder.model, run.collection.dimension
                )
            await self._vectors.create(run.collection)
            await restore_if_lost(run.collection, self._chunks, self._vectors, run.embedder, self._locks)
            await run.announce()
            work = asyncio.create_task(self._process_files(run))
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise Conflict(f"Dataset {dataset!r} was deleted while it was processed.")
                await work
            finally:
                stopped.cancel()
                work.cancel()
                await asyncio.wait([work, stopped])
        return run.report()

    async def _begin(self, ref: ProjectRef, dataset: str, progress: TaskProgress | None) -> ProcessingRun:
        config = await self._projects.config(ref)
        settings = config.dataset(dataset)
        strategy = config.rag.processing_strategy(settings.data_processing_strategy)
        database = config.rag.database(settings.database)
        embedder = (await choose_embedder(self._embedder, database)).embedder
        collection = Collection(ref, database.name, await embedder.dimension())
        await self._embedding_is_new(collection, embedder)
        records = [record for record in await self._files.list_files(ref, dataset) if record.visible]
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
                    await run.note(index, status="skipped", reason="removed meanwhile")
                else:
                    await self._process_file(run, index, record)

    async def _process_file(self, run: ProcessingRun, index: int, record: FileRecord) -> None:
        try:
            settings = run.strategy.settings(record.filename)
        except DocumentError as error:
            await self._fail(run, index, record, error)
            return
        made_with = self._fingerprint(run, settings)
        if record.status == "processed" and record.processed_with == made_with:
            await run.note(
                index,
                status="skipped",
                reason="already processed",
                parser=record.parser,
                chunks=record.chunk_count,
                chunk_size=record.chunk_size,
                embedder=record.embedding_model,
            )
            return
        await run.note(index, status="processing", chunk_size=settings.size, embedder=run.embedder.model)
        working = replace(record, status="processing", error=None, chunk_count=0, processed_with=None)
        await self._files.put(working)
        settled = False
        try:
            if record.status != "uploaded":
                await clear(record, self._chunks, self._vectors)
            document = await self._reader.read(
                self._blobs.path(record.project, record.hash),
                record.filename,
                chunk_size=settings.size,
                chunk_overlap=settings.overlap,
            )
            chunks = _chunks(record, document)
            await self._index(run, index, chunks)
            processed = replace(
                working,
                status="processed",
                parser=document.parser,
                chunk_count=len(chunks),
                chunk_size=settings.size,
                embedding_model=run.embedder.model,
                processed_with=made_with,
            )
            await self._chunks.complete(run.collection.database, processed, chunks)
            settled = True
            await run.note(
                index,
                status="processed",
                parser=document.parser,
                extractors=tuple(document.extractors),
                chunks=len(chunks),
            )
        except DocumentError as error:
            settled = True
            await self._fail(run, index, working, error)
        finally:
            if not settled:
                await asyncio.shield(self._revert(working))

    async def _index(self, run: ProcessingRun, index: int, chunks: Sequence[Chunk]) -> None:
        for start in range(0, len(chunks), self._batch_size):
            batch = chunks[start : start + self._batch_size]
            vectors = await run.embedder.embed_passages([chunk.text for chunk in batch])
            await self._vectors.upsert(run.collection, batch, vectors)
            await run.note(index, chunks=start + len(batch))

    async def _fail(self, run: ProcessingRun, index: int, record: FileRecord, error: LlamasteadError) -> None:
        if record.status == "processed":
            await clear(record, self._chunks, self._vectors)
        await self._files.put(replace(record, status="failed", error=error.message, chunk_count=0, processed_with=None))
        await run.note(index, status="failed", error=error.message, chunks=None)

    async def _revert(self, working: FileRecord) -> None:
        await clear(working, self._chunks, self._vectors)
        await self._files.put(replace(working, status="uploaded"))

    def _fingerprint(self, run: ProcessingRun, settings: ChunkSettings) -> str:
        made_of = [
            _CHUNKER_VERSION, settings.size, settings.overlap, run.embedder.model, run.collection.database,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _chunks(record: FileRecord, document: ParsedDocument) -> Sequence[Chunk]:
    shared = {"document_type": PurePath(record.filename).suffix.lower().lstrip("."), **document.metadata}
    return [
        Chunk(
            id=_chunk_id(record, ordinal),
            dataset=record.dataset,
            file_hash=record.hash,
            filename=record.filename,
            ordinal=ordinal,
            text=piece.text,
            page=piece.page,
            metadata={**shared, **piece.metadata},
        )
        for ordinal, piece in enumerate(document.pieces)
    ]


def _chunk_id(record: FileRecord, ordinal: int) -> str:
    named = "\0".join([*record.project, record.dataset, record.hash, str(ordinal)])
    return hashlib.sha256(named.encode()).hexdigest()[:32]
