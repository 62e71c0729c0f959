"""Removes files and their chunks: vectors first, then the chunks' text, then the content, the record last."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import replace

from llamastead_server.domain.datasets.files import BlobStore, DatasetLocks, FileRecord, FileStore, IndexedChunks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import VectorStore

_log = logging.getLogger("llamastead.datasets")


class FileRemoval:
    """Removes what belongs to a file. The caller holds the file's lock.

    Args:
        files: The records of files.
        chunks: The chunks of processed files.
        blobs: The files' content.
        vectors: The index of the chunks.
        locks: Shared with `Datasets` and `Ingestion`.
    """

    def __init__(
        self, files: FileStore, chunks: IndexedChunks, blobs: BlobStore, vectors: VectorStore, locks: DatasetLocks
    ) -> None:
        self._files = files
        self._chunks = chunks
        self._blobs = blobs
        self._vectors = vectors
        self._locks = locks

    async def remove(self, record: FileRecord, *, erase: bool) -> int:
        """Removes a file from its dataset, with its content if it is to be erased; returns how many chunks it had."""
        await self._files.put(replace(record, status="erasing" if erase else "deleting"))
        removed = await clear(record, self._chunks, self._vectors)
        await self.forget(record, erase=erase)
        return removed

    async def forget(self, record: FileRecord, *, erase: bool) -> None:
        """Removes a record, and the content unless another dataset of the project holds it too."""
        ref = record.project
        async with self._locks.blobs(ref):
            if erase and not await self._files.is_held_elsewhere(ref, record.dataset, record.hash):
                await self._blobs.remove(ref, record.hash)
            await self._files.remove(ref, record.dataset, record.hash)

    async def remove_dataset(self, ref: ProjectRef, dataset: str) -> int:
        """Removes all files of a dataset with their content; returns how many chunks they had.

        The caller holds the dataset. Whoever is at work on one of its files is waited for.
        """
        await self._files.mark(ref, dataset, "erasing")
        async with AsyncExitStack() as stack:
            for record in await self._files.list_files(ref, dataset):
                await stack.enter_async_context(self._locks.file(ref, dataset, record.hash))
            for database in await self._chunks.databases(ref):
                await self._vectors.delete_file(ref, database, dataset, None)
            removed = await self._chunks.remove_file(ref, dataset, None)
            async with self._locks.blobs(ref):
                # Listed again: an upload that had begun may have come to its end meanwhile.
                records = await self._files.list_files(ref, dataset)
                kept = await self._files.held_elsewhere(ref, dataset)
                for record in records:
                    if record.hash not in kept:
                        await self._blobs.remove(ref, record.hash)
                await self._files.remove(ref, dataset, None)
        _log.info("dataset %s/%s: %d files and %d chunks are deleted", ref, dataset, len(records), removed)
        return removed

    async def unprocess(self, record: FileRecord) -> int:
        """Removes a file's chunks and leaves it as it was uploaded; returns how many there were."""
        # A crash in between is put right like that of a file in work.
        await self._files.put(replace(record, status="processing"))
        removed = await clear(record, self._chunks, self._vectors)
        await self._files.put(as_uploaded(record))
        return removed

    async def put_right(self, record: FileRecord) -> None:
        """Finishes or takes back what a crash left half done."""
        match record.status:
            case "uploading" if not await self._blobs.exists(record.project, record.hash):
                await self._files.remove(record.project, record.dataset, record.hash)
            case "uploading":
                await self._files.put(replace(record, status="uploaded"))
            case "processing":
                await self.unprocess(record)
            case "deleting" | "erasing":
                await self.remove(record, erase=record.status == "erasing")
        _log.info(
            "file %s of %s/%s is put right: the server stopped while it was %s",
            record.hash, record.project, record.dataset, record.status,
        )  # fmt: skip


def as_uploaded(record: FileRecord) -> FileRecord:
    """The record of a file without chunks."""
    return replace(
        record,
        status="uploaded",
        error=None,
        chunk_count=0,
        processed_with=None,
        extractors=(),
        facts={},
        ingested_at=None,
    )


async def clear(record: FileRecord, chunks: IndexedChunks, vectors: VectorStore) -> int:
    """Removes a file's chunks from every database of its project, vectors first; returns how many there were."""
    for database in await chunks.databases(record.project):
        await vectors.delete_file(record.project, database, record.dataset, record.hash)
    return await chunks.remove_file(record.project, record.dataset, record.hash)
