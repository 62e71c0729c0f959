"""Batches and their files, in the tables `batches` and `batch_files`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.schema import batch_files, batches
from llamastead_server.domain.tasks.batch_records import OPEN, Batch, BatchFile, BatchStatus, Page


class SqlBatchStore:
    """`domain.tasks.batch_records.BatchStore` over the SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_file(self, file: BatchFile) -> None:
        """Adds a file."""
        await self._database.write(lambda connection: connection.execute(_file_row(file)))

    async def get_file(self, file_id: str) -> BatchFile | None:
        """One file."""
        query = sa.select(batch_files).where(batch_files.c.id == file_id)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _file(row)

    async def list_files(self, page: Page, purpose: str | None) -> Sequence[BatchFile]:
        """Files of a purpose, or all."""
        query = _paged(batch_files, page)
        if purpose is not None:
            query = query.where(batch_files.c.purpose == purpose)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_file(row) for row in rows]

    async def remove_file(self, file_id: str) -> None:
        """Removes a file."""
        change = batch_files.delete().where(batch_files.c.id == file_id)
        await self._database.write(lambda connection: connection.execute(change))

    async def add(self, batch: Batch) -> None:
        """Adds a batch."""
        await self._database.write(lambda connection: connection.execute(batches.insert().values(_row(batch))))

    async def get(self, batch_id: str) -> Batch | None:
        """One batch."""
        query = sa.select(batches).where(batches.c.id == batch_id)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _batch(row)

    async def list_batches(self, page: Page) -> Sequence[Batch]:
        """Batches."""
        query = _paged(batches, page)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_batch(row) for row in rows]

    async def open_batches(self) -> Sequence[Batch]:
        """Batches that have not ended, the oldest first."""
        query = sa.select(batches).where(batches.c.status.in_(OPEN)).order_by(batches.c.created_at, batches.c.id)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_batch(row) for row in rows]

    async def change(self, batch: Batch, was: Sequence[BatchStatus]) -> bool:
        """Replaces a batch if its recorded status is one of `was`."""
        change = batches.update().where(batches.c.id == batch.id, batches.c.status.in_(was)).values(_row(batch))
        return await self._database.write(lambda connection: connection.execute(change).rowcount == 1)

    async def finish(self, batch: Batch, files: Sequence[BatchFile]) -> None:
        """Replaces a batch and adds its files, in one transaction."""

        def work(connection: sa.Connection) -> None:
            connection.execute(batches.update().where(batches.c.id == batch.id).values(_row(batch)))
            for file in files:
                connection.execute(_file_row(file))

        await self._database.write(work)

    async def file_ids(self) -> Sequence[str]:
        """Ids of all files, also of those that open batches write."""
        going_on = sa.select(batches.c.output_file_id, batches.c.error_file_id).where(batches.c.status.in_(OPEN))

        def work(connection: sa.Connection) -> list[str]:
            ids = [row.id for row in connection.execute(sa.select(batch_files.c.id))]
            return [*ids, *(name for row in connection.execute(going_on) for name in row)]

        return await self._database.read(work)


def _paged(table: sa.Table, page: Page) -> sa.Select[Any]:
    place = sa.tuple_(table.c.created_at, table.c.id)
    order = [table.c.created_at, table.c.id]
    query = sa.select(table).order_by(*(column.desc() if page.newest_first else column for column in order))
    if page.after is not None:
        last = sa.select(table.c.created_at, table.c.id).where(table.c.id == page.after).subquery()
        query = query.join(last, place < sa.tuple_(*last.c) if page.newest_first else place > sa.tuple_(*last.c))
    if page.owner is not None:
        query = query.where(table.c.owner == page.owner)
    return query.limit(page.limit + 1)


def _file_row(file: BatchFile) -> sa.Insert:
    return batch_files.insert().values(asdict(file))


def _file(row: sa.Row[Any]) -> BatchFile:
    return BatchFile(row.id, row.filename, row.purpose, row.size, row.created_at, row.owner)


def _row(batch: Batch) -> dict[str, Any]:
    row = asdict(batch)
    row["labels"] = row.pop("metadata")
    return {**row, "errors": list(batch.errors), "times": dict(batch.times)}


def _batch(row: sa.Row[Any]) -> Batch:
    content = dict(row._mapping)
    content["metadata"] = content.pop("labels")
    return Batch(**content)
