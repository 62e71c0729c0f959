"""Processing one file: it is read, cut and embedded, and its chunks are stored.

A file counts as processed in the transaction that writes its chunks; whatever interrupts it before that leaves
it as it was uploaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from llamastead_server.domain.datasets.document_chunks import document_chunks
from llamastead_server.domain.datasets.file_removal import clear
from llamastead_server.domain.datasets.files import (
    BlobStore,
    ContentGone,
    DocumentError,
    FileRecord,
    FileStore,
    IndexedChunks,
)
from llamastead_server.domain.datasets.processing import ProcessingRun
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.errors import LlamasteadError, ValidationFailed
from llamastead_server.domain.ports import Chunk, Clock, DocumentReader, ParsedDocument, VectorStore

_CHUNKER_VERSION = 4
"""Raise it when chunks of the same text change: files are then processed again."""


class FileProcessing:
    """Processes the files of runs, one by one.

    Args:
        files: The records of files.
        chunks: Where chunks' text goes.
        blobs: The files' content.
        vectors: Where vectors go.
        reader: Parses and chunks files.
        clock: Seconds since the epoch.
        batch_size: Chunks embedded and stored at once.
    """

    def __init__(
        self,
        files: FileStore,
        chunks: IndexedChunks,
        blobs: BlobStore,
        vectors: VectorStore,
        reader: DocumentReader,
        clock: Clock,
        batch_size: int,
    ) -> None:
        self._files = files
        self._chunks = chunks
        self._blobs = blobs
        self._vectors = vectors
        self._reader = reader
        self._clock = clock
        self._batch_size = batch_size

    async def process(self, run: ProcessingRun, index: int, record: FileRecord) -> None:
        """Processes one file of a run, unless it is processed with the present settings. The caller holds its lock.

        Args:
            run: The run, which is told how it goes.
            index: The file's place in the run.
            record: The file as it is now.
        """
        try:
            readings = run.strategy.settings(record.filename, record.mime_type, record.parser_overrides)
        except (DocumentError, ValidationFailed) as error:
            await self._fail(run, index, record, error)
            return
        made_with = _fingerprint(run, readings)
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
        working = replace(record, status="processing", error=None, chunk_count=0, processed_with=None, ingested_at=None)
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
                ingested_at=self._clock(),
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
        failed = replace(
            record, status="failed", error=error.message, chunk_count=0, processed_with=None, ingested_at=None
        )
        await self._files.put(failed)
        run.note(index, status="failed", error=error.message, chunks=None)

    async def _revert(self, run: ProcessingRun, index: int, working: FileRecord) -> None:
        await clear(working, self._chunks, self._vectors)
        await self._files.put(replace(working, status="uploaded"))
        run.note(index, status="pending", chunks=None)


def _fingerprint(run: ProcessingRun, readings: Sequence[ReadSettings]) -> str:
    made_of = [
        _CHUNKER_VERSION, [reading.plain() for reading in readings], run.embedder.model, run.collection.database,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
