"""The chunks' text and the databases they are in: the tables `chunks` and `databases`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.file_store import row_of
from llamastead_server.adapters.schema import chunks, databases, files
from llamastead_server.domain.datasets.files import FileRecord
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk
from llamastead_server.domain.retrieval.retriever import Counts

_IDS_PER_QUERY = 500
_ROWS_PER_INSERT = 1000


class SqlChunkStore:
    """`domain.datasets.files.IndexedChunks`, and what retrieval reads, over the SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_chunks(self, ref: ProjectRef, ids: Sequence[str]) -> Mapping[str, Chunk]:
        """The chunks of a project that have these ids; unknown ids are left out."""

        def work(connection: sa.Connection) -> dict[str, Chunk]:
            found: dict[str, Chunk] = {}
            for start in range(0, len(ids), _IDS_PER_QUERY):
                # By id alone: with the project as a condition SQLite reads all of its chunks for a few.
                some = sa.select(chunks).where(chunks.c.id.in_(ids[start : start + _IDS_PER_QUERY]))
                for row in connection.execute(some):
                    if (row.namespace, row.project) != (ref.namespace, ref.name):
                        continue
                    found[row.id] = _chunk(row)
            return found

        return await self._database.read(work)

    async def file_counts(self, ref: ProjectRef) -> Mapping[str, int]:
        """The datasets of a project that hold files, configured or not, and how many files each holds."""
        query = (
            sa.select(files.c.dataset, sa.func.count())
            .where(files.c.namespace == ref.namespace, files.c.project == ref.name)
            .group_by(files.c.dataset)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.dataset: row[1] for row in rows}

    async def counts(self, ref: ProjectRef, hidden: Collection[str]) -> Mapping[str, Counts]:
        """What each of a project's databases holds, by name; one that holds nothing is absent."""
        is_hidden = chunks.c.dataset.in_(hidden)
        query = (
            sa.select(
                chunks.c.database,
                sa.func.count(sa.case((sa.not_(is_hidden), chunks.c.file_hash)).distinct()),
                sa.func.count(),
                sa.func.count(sa.case((is_hidden, 1))),
            )
            .where(*_chunks_in(ref))
            .group_by(chunks.c.database)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row[0]: Counts(*row[1:]) for row in rows}

    async def chunk_count(self, ref: ProjectRef, database: str, *, of: Collection[str] | None = None) -> int:
        """How many chunks a database holds, or how many of these datasets."""
        query = sa.select(sa.func.count()).select_from(chunks).where(*_in_database(ref, database))
        if of is not None:
            query = query.where(chunks.c.dataset.in_(of))
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    async def files_of(self, ref: ProjectRef, database: str) -> Sequence[tuple[str, str]]:
        """Datasets and hashes of the files that have chunks in a database."""
        query = (
            sa.select(chunks.c.dataset, chunks.c.file_hash)
            .where(*_in_database(ref, database))
            .distinct()
            .order_by(chunks.c.dataset, chunks.c.file_hash)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [(row.dataset, row.file_hash) for row in rows]

    async def chunks_of(
        self, ref: ProjectRef, database: str, dataset: str, file_hash: str, *, first: int, limit: int
    ) -> Sequence[Chunk]:
        """A file's chunks in a database, in order, from the one at `first`."""
        query = (
            sa.select(chunks)
            .where(*_of_file(ref, dataset, file_hash), chunks.c.database == database, chunks.c.ordinal >= first)
            .order_by(chunks.c.ordinal)
            .limit(limit)
        )
        return await self._database.read(lambda connection: [_chunk(row) for row in connection.execute(query)])

    async def complete(self, database: str, record: FileRecord, new: Sequence[Chunk]) -> None:
        """Replaces a file's chunks and its record in one transaction."""
        ref = record.project

        def row(chunk: Chunk) -> dict[str, Any]:
            return {
                "id": chunk.id,
                "namespace": ref.namespace,
                "project": ref.name,
                "database": database,
                "dataset": chunk.dataset,
                "file_hash": chunk.file_hash,
                "ordinal": chunk.ordinal,
                "text": chunk.text,
                "page": chunk.page,
                "metadata": {**chunk.metadata, "filename": chunk.filename},
            }

        def work(connection: sa.Connection) -> None:
            connection.execute(chunks.delete().where(*_of_file(ref, record.dataset, record.hash)))
            # Made here and in parts: for a large file it would hold the event loop, and the memory.
            for start in range(0, len(new), _ROWS_PER_INSERT):
                connection.execute(chunks.insert(), [row(chunk) for chunk in new[start : start + _ROWS_PER_INSERT]])
            connection.execute(
                files.update()
                .where(
                    files.c.namespace == ref.namespace,
                    files.c.project == ref.name,
                    files.c.dataset == record.dataset,
                    files.c.hash == record.hash,
                )
                .values(row_of(record))
            )

        await self._database.write(work)

    async def date_ingestion(self, ref: ProjectRef, dataset: str, file_hash: str, moment: float) -> None:
        """Records when a processed file's vectors were last made, in seconds since the epoch."""
        change = (
            files.update()
            .where(
                files.c.namespace == ref.namespace,
                files.c.project == ref.name,
                files.c.dataset == dataset,
                files.c.hash == file_hash,
                files.c.status == "processed",
            )
            .values(ingested_at=moment)
        )
        await self._database.write(lambda connection: connection.execute(change))

    async def remove_file(self, ref: ProjectRef, dataset: str, file_hash: str | None) -> int:
        """Removes a file's chunks, or with `None` the whole dataset's, and returns how many there were."""
        change = chunks.delete().where(*_chunks_in(ref), chunks.c.dataset == dataset)
        if file_hash is not None:
            change = change.where(chunks.c.file_hash == file_hash)
        return await self._database.write(lambda connection: connection.execute(change).rowcount)

    async def databases(self, ref: ProjectRef) -> Sequence[str]:
        """Databases of the project that something was ever written to."""
        query = sa.select(databases.c.name).where(*_databases_in(ref)).order_by(databases.c.name)
        return await self._database.read(lambda connection: list(connection.execute(query).scalars()))

    async def embedding_of(self, ref: ProjectRef, database: str) -> tuple[str, int] | None:
        """Embedding model and dimension the database was made with; `None` for one never written to."""
        query = sa.select(databases.c.embedding_model, databases.c.dimension).where(
            *_databases_in(ref), databases.c.name == database
        )
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else (row.embedding_model, row.dimension)

    async def embeddings(self, ref: ProjectRef) -> Mapping[str, tuple[str, int]]:
        """Embedding models and dimensions of a project's databases, by name; only of those ever written to."""
        query = sa.select(databases).where(*_databases_in(ref))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return {row.name: (row.embedding_model, row.dimension) for row in rows}

    async def remember_embedding(self, ref: ProjectRef, database: str, model: str, dimension: int) -> None:
        """Records the embedding model and dimension of a database; what is recorded already stays."""

        def work(connection: sa.Connection) -> None:
            known = sa.select(databases.c.name).where(*_databases_in(ref), databases.c.name == database)
            if connection.execute(known).one_or_none() is None:
                connection.execute(
                    databases.insert().values(
                        namespace=ref.namespace,
                        project=ref.name,
                        name=database,
                        embedding_model=model,
                        dimension=dimension,
                        metric="cosine",
                    )
                )

        await self._database.write(work)

    async def replace_embedding(self, ref: ProjectRef, database: str, model: str, dimension: int) -> None:
        """Records another embedding model and dimension of a database."""
        names = {"namespace": ref.namespace, "project": ref.name, "name": database}

        def work(connection: sa.Connection) -> None:
            connection.execute(databases.delete().where(*(databases.c[key] == value for key, value in names.items())))
            connection.execute(
                databases.insert().values(**names, embedding_model=model, dimension=dimension, metric="cosine")
            )

        await self._database.write(work)

    async def remove_project(self, ref: ProjectRef) -> None:
        """Removes a project's chunks and databases."""

        def work(connection: sa.Connection) -> None:
            connection.execute(chunks.delete().where(*_chunks_in(ref)))
            connection.execute(databases.delete().where(*_databases_in(ref)))

        await self._database.write(work)


def _chunk(row: sa.Row[Any]) -> Chunk:
    return Chunk(
        id=row.id,
        dataset=row.dataset,
        file_hash=row.file_hash,
        filename=row.metadata["filename"],
        ordinal=row.ordinal,
        text=row.text,
        page=row.page,
        metadata={key: value for key, value in row.metadata.items() if key != "filename"},
    )


def _chunks_in(ref: ProjectRef) -> tuple[sa.ColumnElement[bool], ...]:
    return chunks.c.namespace == ref.namespace, chunks.c.project == ref.name


def _in_database(ref: ProjectRef, database: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_chunks_in(ref), chunks.c.database == database)


def _databases_in(ref: ProjectRef) -> tuple[sa.ColumnElement[bool], ...]:
    return databases.c.namespace == ref.namespace, databases.c.project == ref.name


def _of_file(ref: ProjectRef, dataset: str, file_hash: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_chunks_in(ref), chunks.c.dataset == dataset, chunks.c.file_hash == file_hash)
