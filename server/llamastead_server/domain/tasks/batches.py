"""Files of requests, and the batches that answer them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from llamastead_server.domain import names
from llamastead_server.domain.access.rights import Principal, Scope
from llamastead_server.domain.errors import Conflict, InvalidRequest, NotFound, Overloaded
from llamastead_server.domain.ports import Clock
from llamastead_server.domain.tasks.batch_records import OPEN, Batch, BatchContent, BatchFile, BatchStore, Page

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
WINDOW = "24h"
PURPOSE = "batch"
_WINDOW_SECONDS = 86_400.0
_MOST_OPEN = 100
_MOST_LABELS = 16
_LONGEST_LABEL = 512


class Batches:
    """Stores files and begins, shows and ends batches; `batch_run.BatchRuns` works them off.

    A caller sees what the same caller made, an administrator sees all; what is another's is as if it were not there.

    Args:
        store: The records.
        content: The files' content.
        wake: Tells the runner that there is work.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, store: BatchStore, content: BatchContent, wake: Callable[[], Awaitable[Any]], clock: Clock
    ) -> None:
        self._store = store
        self._content = content
        self._wake = wake
        self._clock = clock

    async def resume(self) -> None:
        """Puts right what a crash left and takes up what was not done. Before the first upload."""
        await self._content.sweep(await self._store.file_ids())
        if await self._store.open_batches():
            await self._wake()

    async def add_file(
        self, caller: Principal, filename: str, content: AsyncIterator[bytes], purpose: Callable[[], str]
    ) -> BatchFile:
        """Stores a file of requests.

        Args:
            caller: Whose it will be.
            filename: Name to show.
            content: Its bytes.
            purpose: Gives the stated purpose once the content has been read; it must be `batch`.

        Raises:
            InvalidRequest: The purpose is another one.
            PayloadTooLarge: The file is too large.
        """
        async with self._content.receive() as upload:
            async for data in content:
                await upload.write(data)
            if (stated := purpose()) != PURPOSE:
                raise InvalidRequest(
                    f"purpose must be {PURPOSE!r}, not {stated[:100]!r}.", details={"field": "purpose"}
                )
            file_id = f"file-{secrets.token_hex(16)}"
            size = await upload.keep(file_id)
        file = BatchFile(file_id, names.file_name(filename), PURPOSE, size, self._clock(), caller.id)
        await self._store.add_file(file)
        return file

    async def get_file(self, caller: Principal, file_id: str) -> BatchFile:
        """Raises `NotFound` when the caller has no such file."""
        file = await self._store.get_file(file_id)
        if file is None or not caller.may_see(file.owner):
            raise NotFound(f"File {file_id[:100]!r} not found.")
        return file

    async def list_files(self, caller: Principal, page: Page, purpose: str | None) -> Sequence[BatchFile]:
        """The caller's files of a purpose, or all: one more than the page holds when there are more."""
        return await self._store.list_files(_seen_by(caller, page), purpose)

    async def read_file(self, caller: Principal, file_id: str) -> AsyncGenerator[bytes, None]:
        """The content in pieces; raises `NotFound` when the caller has no such file."""
        await self.get_file(caller, file_id)
        async with aclosing(self._content.read(file_id)) as pieces:
            async for data in pieces:
                yield data

    async def delete_file(self, caller: Principal, file_id: str) -> None:
        """Deletes a file.

        Raises:
            NotFound: The caller has no such file.
            Conflict: A batch that has not ended reads it.
        """
        await self.get_file(caller, file_id)
        for batch in await self._store.open_batches():
            if batch.input_file_id == file_id:
                raise Conflict(f"The batch {batch.id} still reads this file: cancel it first.")
        # The record first: content without a record is swept at the next start.
        await self._store.remove_file(file_id)
        await self._content.remove(file_id)

    async def create(
        self, caller: Principal, input_file_id: str, endpoint: str, window: str | None, metadata: Mapping[str, str]
    ) -> Batch:
        """Begins a batch.

        Raises:
            InvalidRequest: The endpoint, the window or the labels are not supported.
            NotFound: The caller has no such file.
            Overloaded: Too many batches have not ended.
        """
        if endpoint not in ENDPOINTS:
            raise InvalidRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}.", details={"field": "endpoint"})
        if window not in (None, WINDOW):
            raise InvalidRequest(f"completion_window must be {WINDOW}.", details={"field": "completion_window"})
        if len(metadata) > _MOST_LABELS or any(len(key) + len(text) > _LONGEST_LABEL for key, text in metadata.items()):
            raise InvalidRequest(
                f"metadata takes {_MOST_LABELS} labels of at most {_LONGEST_LABEL} characters.",
                details={"field": "metadata"},
            )
        file = await self.get_file(caller, input_file_id)
        if file.purpose != PURPOSE:
            raise InvalidRequest(
                f"{input_file_id} is a file of answers: give one that was uploaded with the purpose {PURPOSE!r}.",
                details={"field": "input_file_id"},
            )
        if len(await self._store.open_batches()) >= _MOST_OPEN:
            raise Overloaded(f"{_MOST_OPEN} batches have not ended yet; try again later.", retry_after=60.0)
        now = self._clock()
        batch = Batch(
            id=f"batch_{secrets.token_hex(16)}",
            endpoint=endpoint,
            input_file_id=input_file_id,
            output_file_id=f"file-{secrets.token_hex(16)}",
            error_file_id=f"file-{secrets.token_hex(16)}",
            created_at=now,
            expires_at=now + _WINDOW_SECONDS,
            metadata=dict(metadata),
            owner=caller.id,
        )
        await self._store.add(batch)
        await self._wake()
        return batch

    async def get(self, caller: Principal, batch_id: str) -> Batch:
        """Raises `NotFound` when the caller has no such batch."""
        batch = await self._store.get(batch_id)
        if batch is None or not caller.may_see(batch.owner):
            raise NotFound(f"Batch {batch_id[:100]!r} not found.")
        return batch

    async def list_batches(self, caller: Principal, page: Page) -> Sequence[Batch]:
        """The caller's batches: one more than the page holds when there are more."""
        return await self._store.list_batches(_seen_by(caller, page))

    async def cancel(self, caller: Principal, batch_id: str) -> Batch:
        """Ends a batch after the line that is being answered.

        Raises:
            NotFound: The caller has no such batch.
            Conflict: It has ended.
        """
        while True:
            batch = await self.get(caller, batch_id)
            if batch.ended:
                raise Conflict(f"The batch {batch.id} is {batch.status} already.")
            if batch.status == "cancelling":
                return batch
            changed = replace(batch, status="cancelling", times={**batch.times, "cancelling_at": self._clock()})
            if await self._store.change(changed, [status for status in OPEN if status != "cancelling"]):
                await self._wake()
                return changed


def _seen_by(caller: Principal, page: Page) -> Page:
    return page if caller.scope >= Scope.ADMIN else replace(page, owner=caller.id)
