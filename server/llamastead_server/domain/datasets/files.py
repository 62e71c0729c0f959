"""The files of datasets: their records, their content, their chunks, and who may touch them when.

A file passes through these states, each written before the work it announces, so that whatever a crash
leaves behind is known and `Datasets.reconcile` can put it right:

    uploading → uploaded → processing → processed | failed;   any → deleting | erasing → gone

`erasing` is `deleting` with the content; in both the record is the journal of the deletion and goes last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from llamastead_server.domain.errors import Conflict, InvalidRequest
from llamastead_server.domain.named_locks import NamedLocks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk

FileStatus = Literal["uploading", "uploaded", "processing", "processed", "failed", "deleting", "erasing"]


class DocumentError(InvalidRequest):
    """A file can't be read; the message is the reason, for the person who uploaded it."""


class ContentGone(Conflict):
    """A file's content is not on the disk any more: somebody removed it there, or a backup lacked it."""

    def __init__(self, filename: str) -> None:
        super().__init__(f"The content of {filename!r} is gone from the server's disk. Upload the file again.")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a dataset and how far it is.

    Attributes:
        project: Project that holds the dataset.
        dataset: Name of the dataset.
        hash: SHA-256 of the content, in hex.
        filename: Name it was uploaded under, made safe to show.
        mime_type: Media type, such as `application/pdf`.
        size: Bytes.
        uploaded_at: Seconds since the epoch.
        status: How far it is.
        error: Why it failed.
        parser: What read it.
        chunk_count: Chunks indexed.
        chunk_size: Target size of a chunk, in characters.
        embedding_model: What embedded it.
        processed_with: Fingerprint of the settings it was processed with.
        parser_overrides: Settings that replace those of its parser, for this file alone.
        extractors: What was drawn from it.
        facts: What extractors found in it as a whole.
        ingested_at: When its vectors were last made, in seconds since the epoch; `None` unless it is processed.
    """

    project: ProjectRef
    dataset: str
    hash: str
    filename: str
    mime_type: str
    size: int
    uploaded_at: float
    status: FileStatus
    error: str | None = None
    parser: str | None = None
    chunk_count: int = 0
    chunk_size: int | None = None
    embedding_model: str | None = None
    processed_with: str | None = None
    parser_overrides: Mapping[str, Any] | None = None
    extractors: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    ingested_at: float | None = None

    @property
    def visible(self) -> bool:
        """Whether the file belongs to its dataset: not half uploaded, not half deleted."""
        return self.status not in ("uploading", "deleting", "erasing")


class FileStore(Protocol):
    """The records of files."""

    async def add(self, record: FileRecord) -> FileRecord | None:
        """Adds a record; returns the one that is there already, if any, and then changes nothing."""
        ...

    async def get(self, ref: ProjectRef, dataset: str, file_hash: str) -> FileRecord | None:
        """The record of one file."""
        ...

    async def list_files(self, ref: ProjectRef, dataset: str | None = None) -> Sequence[FileRecord]:
        """A dataset's files, or a project's, in the order they were added; unfinished ones included."""
        ...

    async def filled_datasets(self, ref: ProjectRef) -> Collection[str]:
        """The datasets of a project that hold files which are visible, configured or not."""
        ...

    async def put(self, record: FileRecord) -> None:
        """Replaces a record, unless it is gone."""
        ...

    async def override(
        self, ref: ProjectRef, dataset: str, file_hash: str | None, overrides: Mapping[str, Any]
    ) -> None:
        """Sets the parser settings of one file, or with `None` of all of a dataset."""
        ...

    async def held_elsewhere(self, ref: ProjectRef, dataset: str) -> Collection[str]:
        """Hashes of a dataset's files that other datasets of the project hold too."""
        ...

    async def is_held_elsewhere(self, ref: ProjectRef, dataset: str, file_hash: str) -> bool:
        """Whether another dataset of the project holds a file."""
        ...

    async def mark(self, ref: ProjectRef, dataset: str, status: FileStatus) -> None:
        """Sets the status of all files of a dataset."""
        ...

    async def remove(self, ref: ProjectRef, dataset: str, file_hash: str | None) -> None:
        """Removes one record, or with `None` all of a dataset."""
        ...

    async def remove_project(self, ref: ProjectRef) -> None:
        """Removes a project's records."""
        ...

    async def interrupted(self) -> Sequence[FileRecord]:
        """Files of all projects that are uploading, processing, deleting or erasing."""
        ...


class IndexedChunks(Protocol):
    """The chunks' text and the databases they are in."""

    async def complete(self, database: str, record: FileRecord, chunks: Sequence[Chunk]) -> None:
        """Replaces a file's chunks and its record in one transaction."""
        ...

    async def remove_file(self, ref: ProjectRef, dataset: str, file_hash: str | None) -> int:
        """Removes a file's chunks, or with `None` the whole dataset's, and returns how many there were."""
        ...

    async def date_ingestion(self, ref: ProjectRef, dataset: str, file_hash: str, moment: float) -> None:
        """Records when a processed file's vectors were last made, in seconds since the epoch."""
        ...

    async def databases(self, ref: ProjectRef) -> Sequence[str]:
        """Databases of the project that something was ever written to."""
        ...

    async def embedding_of(self, ref: ProjectRef, database: str) -> tuple[str, int] | None:
        """Embedding model and dimension the database was made with."""
        ...

    async def remember_embedding(self, ref: ProjectRef, database: str, model: str, dimension: int) -> None:
        """Records the embedding model and dimension of a database that has none yet."""
        ...

    async def replace_embedding(self, ref: ProjectRef, database: str, model: str, dimension: int) -> None:
        """Records another embedding model and dimension of a database."""
        ...

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

    async def remove_project(self, ref: ProjectRef) -> None:
        """Removes a project's chunks and databases."""
        ...


class Upload(Protocol):
    """Content on its way to the blob store."""

    async def write(self, data: bytes) -> None:
        """Appends bytes; raises `PayloadTooLarge` past the limit."""
        ...

    async def finish(self) -> tuple[str, int]:
        """Makes the content durable and returns its SHA-256 in hex and its size in bytes."""
        ...

    async def keep(self) -> None:
        """Moves the finished content to its place; without this it is removed when the upload is left."""
        ...


class BlobStore(Protocol):
    """Files' content, by the SHA-256 of the content."""

    def receive(self, ref: ProjectRef) -> AbstractAsyncContextManager[Upload]:
        """Begins an upload into a project."""
        ...

    def path(self, ref: ProjectRef, file_hash: str) -> Path:
        """Where the content is, or would be."""
        ...

    async def exists(self, ref: ProjectRef, file_hash: str) -> bool:
        """Whether the content is there."""
        ...

    async def remove(self, ref: ProjectRef, file_hash: str) -> None:
        """Removes the content, if it is there."""
        ...

    async def sweep(self) -> None:
        """Removes what uploads left behind when the server died. Only before the first upload."""
        ...


class DatasetLocks:
    """Who may touch what: one run per dataset, one worker per file, short changes of a project's blobs.

    Locks exist while someone holds or awaits them. Taken in the order run, file, blobs.
    """

    def __init__(self) -> None:
        self._locks = NamedLocks()
        self._stops: dict[tuple[ProjectRef, str], asyncio.Event] = {}
        self._ending: list[tuple[ProjectRef, str | None]] = []

    @asynccontextmanager
    async def run(self, ref: ProjectRef, dataset: str) -> AsyncIterator[asyncio.Event]:
        """Holds a dataset; the event is set when someone wants it deleted."""
        async with self._locks.held(("run", *ref, dataset)):
            stop = self._stops[ref, dataset] = asyncio.Event()
            try:
                yield stop
            finally:
                del self._stops[ref, dataset]

    def is_running(self, ref: ProjectRef, dataset: str) -> bool:
        """Whether someone holds the dataset."""
        return (ref, dataset) in self._stops

    def running(self, ref: ProjectRef) -> Sequence[str]:
        """The datasets of a project that someone holds."""
        return [dataset for project, dataset in self._stops if project == ref]

    @contextmanager
    def ending(self, ref: ProjectRef, dataset: str | None = None) -> Iterator[None]:
        """Marks a dataset, or a whole project, as being deleted and tells its runs to stop."""
        self._ending.append((ref, dataset))
        for (project, name), stop in self._stops.items():
            if project == ref and dataset in (None, name):
                stop.set()
        try:
            yield
        finally:
            self._ending.remove((ref, dataset))

    def is_ending(self, ref: ProjectRef, dataset: str) -> bool:
        """Whether the dataset or its project is being deleted."""
        return (ref, dataset) in self._ending or (ref, None) in self._ending

    def file(self, ref: ProjectRef, dataset: str, file_hash: str) -> AbstractAsyncContextManager[None]:
        """Holds one file of a dataset."""
        return self._locks.held(("file", *ref, dataset, file_hash))

    def blobs(self, ref: ProjectRef) -> AbstractAsyncContextManager[None]:
        """Holds the relation of a project's records to its blobs."""
        return self._locks.held(("blobs", *ref))
