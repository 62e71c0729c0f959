"""What databases hold, by the tables `chunks`, `databases` and `files`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.schema import chunks, databases, files
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.retrieval.database_views import Contents, Document


class SqlDatabaseContents:
    """`domain.databases.DatabaseContents` over the SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def contents(self, ref: ProjectRef, database: str, *, without: Collection[str] = ()) -> Contents:
        """How much a database holds, the datasets `without` left out."""
        here = _in(ref, database, without)
        counts = sa.select(sa.func.count(), sa.func.count(chunks.c.file_hash.distinct())).where(*here)
        newest = sa.select(sa.func.max(files.c.ingested_at)).select_from(_with_files()).where(*here)

        def work(connection: sa.Connection) -> Contents:
            number, documents = connection.execute(counts).one()
            return Contents(documents, number, connection.execute(newest).scalar() if number else None)

        return await self._database.read(work)

    async def documents(
        self, ref: ProjectRef, database: str, limit: int, offset: int, *, without: Collection[str] = ()
    ) -> Sequence[Document]:
        """A part of a database's documents, by name, the datasets `without` left out."""
        here = _in(ref, database, without)
        grouped = (
            sa.select(
                chunks.c.file_hash,
                sa.func.min(files.c.filename).label("filename"),
                sa.func.count().label("chunk_count"),
                sa.func.max(files.c.size).label("size"),
                sa.func.max(files.c.parser).label("parser"),
                sa.func.max(files.c.ingested_at).label("ingested_at"),
                sa.func.max(files.c.mime_type).label("mime_type"),
            )
            .select_from(_with_files())
            .where(*here)
            .group_by(chunks.c.file_hash)
            .order_by(sa.func.min(files.c.filename), chunks.c.file_hash)
            .limit(limit)
            # Postgres reads a plain one as of 31 bits.
            .offset(sa.literal(offset, sa.BigInteger))
        )

        def work(connection: sa.Connection) -> Sequence[Document]:
            rows = connection.execute(grouped).all()
            hashes = [row.file_hash for row in rows]
            firsts: dict[str, list[Any]] = {}
            for first in connection.execute(
                sa.select(chunks.c.file_hash, chunks.c.dataset, chunks.c.metadata)
                .where(*here, chunks.c.file_hash.in_(hashes), chunks.c.ordinal == 0)
                .order_by(chunks.c.dataset)
            ):
                firsts.setdefault(first.file_hash, []).append(first)
            return [_document(row, firsts.get(row.file_hash, [])) for row in rows]

        return await self._database.read(work)

    async def remove_database(self, ref: ProjectRef, database: str) -> int:
        """Removes a database's chunks; its files count as only uploaded. Returns how many chunks there were."""
        here = _in(ref, database)
        of_its_files = sa.exists().where(
            *here, chunks.c.dataset == files.c.dataset, chunks.c.file_hash == files.c.hash
        )  # fmt: skip
        reset = (
            files.update()
            .where(
                files.c.namespace == ref.namespace,
                files.c.project == ref.name,
                files.c.status == "processed",
                of_its_files,
            )
            .values(status="uploaded", chunk_count=0, processed_with=None, ingested_at=None)
        )

        def work(connection: sa.Connection) -> int:
            connection.execute(reset)
            removed = connection.execute(chunks.delete().where(*here)).rowcount
            connection.execute(
                databases.delete().where(
                    databases.c.namespace == ref.namespace,
                    databases.c.project == ref.name,
                    databases.c.name == database,
                )
            )
            return removed

        return await self._database.write(work)


def _in(ref: ProjectRef, database: str, without: Collection[str] = ()) -> Sequence[sa.ColumnElement[bool]]:
    here = [chunks.c.namespace == ref.namespace, chunks.c.project == ref.name, chunks.c.database == database]
    return [*here, chunks.c.dataset.not_in(without)] if without else here


def _with_files() -> sa.FromClause:
    return chunks.join(
        files,
        sa.and_(
            files.c.namespace == chunks.c.namespace,
            files.c.project == chunks.c.project,
            files.c.dataset == chunks.c.dataset,
            files.c.hash == chunks.c.file_hash,
        ),
    )


def _document(row: Any, firsts: Sequence[Any]) -> Document:
    known: dict[str, Any] = dict(firsts[0].metadata) if firsts else {}
    known.pop("filename", None)
    return Document(
        hash=row.file_hash,
        filename=row.filename,
        chunk_count=row.chunk_count,
        size=row.size,
        parser=row.parser,
        ingested_at=row.ingested_at,
        datasets=[first.dataset for first in firsts],
        mime_type=row.mime_type,
        metadata=known,
    )
