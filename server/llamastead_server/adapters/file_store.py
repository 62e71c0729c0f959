"""The records of files, in the table `files`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.schema import files
from llamastead_server.domain.datasets.files import FileRecord, FileStatus
from llamastead_server.domain.names import ProjectRef

_INVISIBLE: Sequence[FileStatus] = ("uploading", "deleting", "erasing")
_INTERRUPTED = (*_INVISIBLE, "processing")


class SqlFileStore:
    """`domain.files.FileStore` over the SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, record: FileRecord) -> FileRecord | None:
        """Adds a record; returns the one that is there already, if any, and then changes nothing."""

        def work(connection: sa.Connection) -> FileRecord | None:
            there = connection.execute(sa.select(files).where(*_key(record))).one_or_none()
            if there is None:
                connection.execute(files.insert().values(row_of(record)))
            return None if there is None else _record(there)

        return await self._database.write(work)

    async def get(self, ref: ProjectRef, dataset: str, file_hash: str) -> FileRecord | None:
        """The record of one file."""
        query = sa.select(files).where(*_in_project(ref), files.c.dataset == dataset, files.c.hash == file_hash)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _record(row)

    async def list_files(self, ref: ProjectRef, dataset: str | None = None) -> Sequence[FileRecord]:
        """A dataset's files, or a project's, in the order they were added; unfinished ones included."""
        query = sa.select(files).where(*_in_project(ref)).order_by(files.c.uploaded_at, files.c.hash)
        if dataset is not None:
            query = query.where(files.c.dataset == dataset)
        return await self._database.read(lambda connection: [_record(row) for row in connection.execute(query)])

    async def filled_datasets(self, ref: ProjectRef) -> Collection[str]:
        """The datasets of a project that hold files which are visible, configured or not."""
        query = sa.select(files.c.dataset).where(*_in_project(ref), files.c.status.not_in(_INVISIBLE)).distinct()
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))

    async def put(self, record: FileRecord) -> None:
        """Replaces a record, unless it is gone."""
        change = files.update().where(*_key(record)).values(row_of(record))
        await self._database.write(lambda connection: connection.execute(change))

    async def override(
        self, ref: ProjectRef, dataset: str, file_hash: str | None, overrides: Mapping[str, Any]
    ) -> None:
        """Sets the parser settings of one file, or with `None` of all of a dataset."""
        change = files.update().where(*_in_dataset(ref, dataset, file_hash)).values(parser_overrides=dict(overrides))
        await self._database.write(lambda connection: connection.execute(change))

    async def held_elsewhere(self, ref: ProjectRef, dataset: str) -> Collection[str]:
        """Hashes of a dataset's files that other datasets of the project hold too."""
        query = _held_elsewhere(ref, dataset)
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))

    async def is_held_elsewhere(self, ref: ProjectRef, dataset: str, file_hash: str) -> bool:
        """Whether another dataset of the project holds a file."""
        query = _held_elsewhere(ref, dataset).where(files.c.hash == file_hash).limit(1)
        return await self._database.read(lambda connection: connection.execute(query).first() is not None)

    async def mark(self, ref: ProjectRef, dataset: str, status: FileStatus) -> None:
        """Sets the status of all files of a dataset."""
        change = files.update().where(*_in_dataset(ref, dataset)).values(status=status)
        await self._database.write(lambda connection: connection.execute(change))

    async def remove(self, ref: ProjectRef, dataset: str, file_hash: str | None) -> None:
        """Removes one record, or with `None` all of a dataset."""
        change = files.delete().where(*_in_dataset(ref, dataset, file_hash))
        await self._database.write(lambda connection: connection.execute(change))

    async def remove_project(self, ref: ProjectRef) -> None:
        """Removes a project's records."""
        change = files.delete().where(*_in_project(ref))
        await self._database.write(lambda connection: connection.execute(change))

    async def interrupted(self) -> Sequence[FileRecord]:
        """Files of all projects that are uploading, processing, deleting or erasing."""
        query = sa.select(files).where(files.c.status.in_(_INTERRUPTED))
        return await self._database.read(lambda connection: [_record(row) for row in connection.execute(query)])


def row_of(record: FileRecord) -> dict[str, Any]:
    """The record as values of the table's columns."""
    return {
        "namespace": record.project.namespace,
        "project": record.project.name,
        "dataset": record.dataset,
        "hash": record.hash,
        "filename": record.filename,
        "mime_type": record.mime_type,
        "size": record.size,
        "uploaded_at": record.uploaded_at,
        "status": record.status,
        "error": record.error,
        "parser": record.parser,
        "chunk_count": record.chunk_count,
        "chunk_size": record.chunk_size,
        "embedding_model": record.embedding_model,
        "processed_with": record.processed_with,
        "parser_overrides": None if record.parser_overrides is None else dict(record.parser_overrides),
        "extractors": list(record.extractors),
        "facts": dict(record.facts),
        "ingested_at": record.ingested_at,
    }


def _record(row: sa.Row[Any]) -> FileRecord:
    values = dict(row._mapping)
    # Rows from before these columns existed hold nothing in them.
    values |= {"extractors": tuple(row.extractors or ()), "facts": row.facts or {}}
    return FileRecord(project=ProjectRef(values.pop("namespace"), values.pop("project")), **values)


def _in_project(ref: ProjectRef) -> tuple[sa.ColumnElement[bool], ...]:
    return files.c.namespace == ref.namespace, files.c.project == ref.name


def _in_dataset(ref: ProjectRef, dataset: str, file_hash: str | None = None) -> Sequence[sa.ColumnElement[bool]]:
    here = [*_in_project(ref), files.c.dataset == dataset]
    return here if file_hash is None else [*here, files.c.hash == file_hash]


def _held_elsewhere(ref: ProjectRef, dataset: str) -> sa.Select[Any]:
    others = files.alias()
    same = (
        sa.select(others.c.hash)
        .where(
            others.c.namespace == ref.namespace,
            others.c.project == ref.name,
            others.c.dataset != dataset,
            others.c.hash == files.c.hash,
        )
        .exists()
    )
    return sa.select(files.c.hash).where(*_in_dataset(ref, dataset), same)


def _key(record: FileRecord) -> tuple[sa.ColumnElement[bool], ...]:
    return (*_in_project(record.project), files.c.dataset == record.dataset, files.c.hash == record.hash)
