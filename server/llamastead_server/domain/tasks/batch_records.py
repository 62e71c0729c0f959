"""Batches and their files as they are recorded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
OPEN: Sequence[BatchStatus] = ("validating", "in_progress", "finalizing", "cancelling")
"""What a batch is while something is left to do."""


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file of requests (`batch`) or of answers (`batch_output`).

    Attributes:
        id: Unguessable id.
        filename: Name to show.
        purpose: `batch` or `batch_output`.
        size: Bytes.
        created_at: Seconds since the epoch.
        owner: Id of the caller whose it is; None: an older server's.
    """

    id: str
    filename: str
    purpose: str
    size: int
    created_at: float
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests being answered in the background.

    Attributes:
        id: Unguessable id.
        endpoint: Where its requests go.
        input_file_id: File of requests.
        output_file_id: File of answers, from the start; it is listed when the batch has ended.
        error_file_id: File of failed requests, likewise.
        created_at: Seconds since the epoch.
        expires_at: When it ends with what it has.
        status: Where it stands.
        times: When it came to each status, as `in_progress_at` and so on.
        total: Lines.
        completed: Lines with an answer.
        failed: Lines with an error.
        errors: What is wrong with the file of requests.
        metadata: Labels.
        owner: Id of the caller whose it is, as its files are; None: an older server's.
    """

    id: str
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    created_at: float
    expires_at: float
    status: BatchStatus = "validating"
    times: Mapping[str, float] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: Sequence[Mapping[str, Any]] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status not in OPEN


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list: `limit` entries after the entry with the id `after`; only an owner's, if one is given."""

    after: str | None = None
    limit: int = 20
    newest_first: bool = True
    owner: str | None = None


class BatchStore(Protocol):
    """The records."""

    async def add_file(self, file: BatchFile) -> None:
        """Adds a file."""
        ...

    async def get_file(self, file_id: str) -> BatchFile | None:
        """One file."""
        ...

    async def list_files(self, page: Page, purpose: str | None) -> Sequence[BatchFile]:
        """Files of a purpose, or all: one more than the page holds when there are more."""
        ...

    async def remove_file(self, file_id: str) -> None:
        """Removes a file."""
        ...

    async def add(self, batch: Batch) -> None:
        """Adds a batch."""
        ...

    async def get(self, batch_id: str) -> Batch | None:
        """One batch."""
        ...

    async def list_batches(self, page: Page) -> Sequence[Batch]:
        """Batches: one more than the page holds when there are more."""
        ...

    async def open_batches(self) -> Sequence[Batch]:
        """Batches that have not ended, the oldest first."""
        ...

    async def change(self, batch: Batch, was: Sequence[BatchStatus]) -> bool:
        """Replaces a batch if its recorded status is one of `was`; tells whether it was."""
        ...

    async def finish(self, batch: Batch, files: Sequence[BatchFile]) -> None:
        """Replaces a batch and adds its files, in one transaction."""
        ...

    async def file_ids(self) -> Sequence[str]:
        """Ids of all files, also of those that open batches write."""
        ...


class BatchUpload(Protocol):
    """Content on its way to its place."""

    async def write(self, data: bytes) -> None:
        """Appends bytes; raises `PayloadTooLarge` past the limit."""
        ...

    async def keep(self, file_id: str) -> int:
        """Makes the content durable under an id and returns its size."""
        ...


class Journal(Protocol):
    """The answers of one batch, a line at a time.

    Attributes:
        done: `custom_id`s of the lines that have an answer or an error.
        completed: Lines with an answer.
        failed: Lines with an error.
    """

    done: set[str]
    completed: int
    failed: int

    async def append(self, custom_id: str, line: Mapping[str, Any], *, failed: bool) -> None:
        """Adds a line; it is on disk when this returns."""
        ...


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of a file of requests found: the number of lines, and what is wrong."""

    total: int
    errors: Sequence[Mapping[str, Any]]


class BatchContent(Protocol):
    """The files' content."""

    def receive(self) -> AbstractAsyncContextManager[BatchUpload]:
        """Begins an upload; what is not kept is removed when the block is left."""
        ...

    def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The content in pieces."""
        ...

    async def check(self, file_id: str, endpoint: str) -> Checked:
        """Checks every line of a file of requests."""
        ...

    def requests(self, file_id: str) -> AsyncGenerator[Mapping[str, Any], None]:
        """The lines of a checked file of requests."""
        ...

    async def journal(self, output_file_id: str, error_file_id: str) -> Journal:
        """Opens a batch's answers; a line that a crash tore is cut off."""
        ...

    async def size(self, file_id: str) -> int:
        """Bytes of a file; 0 if there is none."""
        ...

    async def remove(self, file_id: str) -> None:
        """Removes a file, if it is there."""
        ...

    async def sweep(self, known: Sequence[str]) -> None:
        """Removes what crashes left: files that no record names, and torn uploads. Only before the first upload."""
        ...
