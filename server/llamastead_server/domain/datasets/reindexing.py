"""Vectors made anew from the chunks' text, which is the truth they can always be rebuilt from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llamastead_server.domain.datasets.files import DatasetLocks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk, Clock, Collection, Embedder, ProjectStore, TaskProgress, VectorStore
from llamastead_server.domain.retrieval.databases import held
from llamastead_server.domain.retrieval.embedding_choice import choose_embedder

REINDEX_DATABASE = "reindex_database"
"""The kind of task that `Reindexing.run_task` runs; its argument is `database`."""

_BATCH = 64


class StoredChunks(Protocol):
    """The chunks of a database, and what it was made with."""

    async def chunk_count(self, ref: ProjectRef, database: str) -> int:
        """How many chunks a database holds."""
        ...

    async def files_of(self, ref: ProjectRef, database: str) -> Sequence[tuple[str, str]]:
        """Datasets and hashes of the files that have chunks in a database."""
        ...

    async def chunks_of(
        self, ref: ProjectRef, database: str, dataset: str, file_hash: str, *, first: int, limit: int
    ) -> Sequence[Chunk]:
        """A file's chunks in a database, in order, from the one at `first`."""
        ...

    async def date_ingestion(self, ref: ProjectRef, dataset: str, file_hash: str, moment: float) -> None:
        """Records when a processed file's vectors were last made, in seconds since the epoch."""
        ...

    async def replace_embedding(self, ref: ProjectRef, database: str, model: str, dimension: int) -> None:
        """Records another embedding model and dimension of a database."""
        ...


class Reindexing:
    """Makes the vectors of databases from their chunks.

    Args:
        projects: Where databases are configured.
        chunks: The chunks' text.
        vectors: Where vectors go.
        embedder: Makes them.
        locks: Shared with `Ingestion`.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        projects: ProjectStore,
        chunks: StoredChunks,
        vectors: VectorStore,
        embedder: Embedder,
        locks: DatasetLocks,
        clock: Clock = time.time,
    ) -> None:
        self._projects = projects
        self._chunks = chunks
        self._vectors = vectors
        self._embedder = embedder
        self._locks = locks
        self._clock = clock

    async def plan(self, ref: ProjectRef, database: str | None) -> str:
        """The name of the database that a run would work on; raises what the run would raise before its work."""
        chosen = (await self._projects.config(ref)).rag.database(database)
        await (await choose_embedder(self._embedder, chosen)).embedder.dimension()
        return chosen.name

    async def run_task(
        self, ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress
    ) -> Mapping[str, Any]:
        """Drops a database's vectors and makes them again with the model it now names; datasets wait meanwhile."""
        config = await self._projects.config(ref)
        database = config.rag.database(arguments["database"])
        embedder = (await choose_embedder(self._embedder, database)).embedder
        collection = Collection(ref, database.name, await embedder.dimension())
        datasets = [dataset.name for dataset in config.datasets if dataset.database == database.name]
        async with held(self._locks, ref, datasets):
            await self._vectors.drop(ref, database.name)
            # Recorded before the first vector, so that queries never compare vectors of two models.
            await self._chunks.replace_embedding(ref, database.name, embedder.model, collection.dimension)
            count = await rebuild(collection, self._chunks, self._vectors, embedder, self._locks, self._clock, progress)
        return {"database": database.name, "chunks": count, "embedding_model": embedder.model}


async def restore_if_lost(
    collection: Collection,
    chunks: StoredChunks,
    vectors: VectorStore,
    embedder: Embedder,
    locks: DatasetLocks,
    clock: Clock,
) -> None:
    """Makes a database's vectors again when the vector store has fewer of them than there are chunks."""
    there = await chunks.chunk_count(collection.project, collection.database)
    if there > await vectors.count(collection.project, collection.database):
        await rebuild(collection, chunks, vectors, embedder, locks, clock)


async def rebuild(
    collection: Collection,
    chunks: StoredChunks,
    vectors: VectorStore,
    embedder: Embedder,
    locks: DatasetLocks,
    clock: Clock,
    progress: TaskProgress | None = None,
) -> int:
    """Embeds and writes every chunk of a database again; returns how many."""
    ref, name = collection.project, collection.database
    await vectors.create(collection)
    total = await chunks.chunk_count(ref, name)
    done = 0
    for dataset, file_hash in await chunks.files_of(ref, name):
        # Held, so that a file that is removed meanwhile leaves no vectors behind.
        async with locks.file(ref, dataset, file_hash):
            first = 0
            while batch := await chunks.chunks_of(ref, name, dataset, file_hash, first=first, limit=_BATCH):
                await vectors.upsert(collection, batch, await embedder.embed_passages([each.text for each in batch]))
                done, first = done + len(batch), batch[-1].ordinal + 1
            await chunks.date_ingestion(ref, dataset, file_hash, clock())
        if progress is not None:
            await progress.report(done, max(done, total), f"Embedded {done} of {total} chunks")
    return done
