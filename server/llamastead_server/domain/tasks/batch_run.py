"""Working off batches: one line at a time, behind everyone who waits for an answer.

A run takes a slice of time and then queues itself again, so that other background work gets its turn. Each answer is
on disk before the next line begins; a run that is killed and delivered again skips what is there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Clock, TaskProgress
from llamastead_server.domain.tasks.batch_records import (
    Batch,
    BatchContent,
    BatchFile,
    BatchStatus,
    BatchStore,
    Journal,
)

_log = logging.getLogger("llamastead.batches")

RUN_BATCHES = "run_batches"
BATCHES = ProjectRef("-", "batches")
"""What stands for a project in the tasks of batches; no project has such a name."""

_ATTEMPTS = 5
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """An answer to one line, or its error.

    Attributes:
        status: The HTTP status a client would have seen.
        body: The JSON body.
        retry_after: Seconds after which the line may succeed; None when there is no use in trying.
    """

    status: int
    body: Mapping[str, Any]
    retry_after: float | None = None


class LineAnswers(Protocol):
    """Answers the lines."""

    async def answer(self, endpoint: str, body: Mapping[str, Any]) -> LineAnswer:
        """Answers one request; its failures are answers too."""
        ...


class BatchRuns:
    """The task function that works off all open batches.

    Args:
        store: The records.
        content: The files' content.
        answers: Answers the lines.
        has_room: Whether the engines have a slot to spare.
        again: Queues another run.
        clock: Seconds since the epoch.
        slice_seconds: Time one run may take.
        poll: Seconds between two looks for room.
    """

    def __init__(
        self,
        store: BatchStore,
        content: BatchContent,
        answers: LineAnswers,
        has_room: Callable[[], bool],
        again: Callable[[], Awaitable[Any]],
        clock: Clock,
        *,
        slice_seconds: float = 30.0,
        poll: float = 0.1,
    ) -> None:
        self._store = store
        self._content = content
        self._answers = answers
        self._has_room = has_room
        self._again = again
        self._clock = clock
        self._slice = slice_seconds
        self._poll = poll
        self._running = False
        self._wanted = False

    async def run(self, ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        """Works until nothing is left or the slice is over; ends at once while another run works here."""
        self._wanted = True
        if self._running:
            return {}
        self._running = True
        try:
            over = await self._work(self._clock() + self._slice)
        finally:
            self._running = False
        if over:
            await self._again()
        return {}

    async def _work(self, until: float) -> bool:
        while self._wanted:
            # Whoever wants a run from here on gets another look.
            self._wanted = False
            # What was cancelled ends first: it need not wait for the batches before it, which may take a day.
            for batch in sorted(await self._store.open_batches(), key=lambda each: each.status != "cancelling"):
                try:
                    over = await self._advance(batch, until)
                except Exception:
                    _log.exception("batch %s failed", batch.id)
                    errors = [{"code": "internal", "message": "The server failed; its log tells why.", "line": None}]
                    # As it stands by now: the answers that it has stay within reach.
                    await self._finish(replace(await self._now(batch), errors=errors), "failed")
                    continue
                if over:
                    return True
        return False

    async def _advance(self, batch: Batch, until: float) -> bool:
        """Works on one batch; tells whether the time is over."""
        if batch.status == "validating":
            checked = await self._content.check(batch.input_file_id, batch.endpoint)
            batch = replace(batch, total=checked.total, errors=checked.errors)
            if checked.errors:
                await self._finish(batch, "failed")
                return False
            batch = self._at(batch, "in_progress")
            if not await self._store.change(batch, ["validating"]):
                return await self._advance(await self._now(batch), until)
        if batch.status == "cancelling" and "in_progress_at" not in batch.times:
            await self._finish(batch, "cancelled")
            return False
        journal = await self._content.journal(batch.output_file_id, batch.error_file_id)
        ending = await self._lines(batch, journal, until)
        if ending is not None:
            await self._finish(self._counted(await self._now(batch), journal), ending)
        return ending is None

    async def _lines(self, batch: Batch, journal: Journal, until: float) -> BatchStatus | None:
        """Answers what is left; gives how the batch ends, or None when the time is over."""
        async with aclosing(self._content.requests(batch.input_file_id)) as lines:
            async for line in lines:
                if line["custom_id"] in journal.done:
                    continue
                while True:
                    if (await self._now(batch)).status == "cancelling":
                        return "cancelled"
                    if self._clock() >= batch.expires_at:
                        return "expired"
                    if self._clock() >= until:
                        return None
                    if self._has_room():
                        break
                    await asyncio.sleep(self._poll)
                answer = await self._answer(batch.endpoint, line["body"])
                failed = answer.status >= 400
                await journal.append(line["custom_id"], _result(line["custom_id"], answer), failed=failed)
                await self._store.change(self._counted(batch, journal), ["in_progress"])
        return "cancelled" if (await self._now(batch)).status == "cancelling" else "completed"

    async def _answer(self, endpoint: str, body: Mapping[str, Any]) -> LineAnswer:
        for attempt in range(_ATTEMPTS):
            answer = await self._answers.answer(endpoint, body)
            if answer.retry_after is None or attempt == _ATTEMPTS - 1:
                break
            await asyncio.sleep(min(answer.retry_after * 2**attempt, _LONGEST_PAUSE))
        return answer

    async def _finish(self, batch: Batch, ending: BatchStatus) -> None:
        """Lists the files of answers and ends the batch, in one transaction."""
        files = []
        for file_id, name in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
            if size := await self._content.size(file_id):
                files.append(
                    BatchFile(file_id, f"{batch.id}_{name}.jsonl", "batch_output", size, self._clock(), batch.owner)
                )
        if ending == "completed":
            batch = self._at(batch, "finalizing")
        await self._store.finish(self._at(batch, ending), files)

    async def _now(self, batch: Batch) -> Batch:
        found = await self._store.get(batch.id)
        assert found is not None, "batches stay"
        return found

    def _counted(self, batch: Batch, journal: Journal) -> Batch:
        return replace(batch, completed=journal.completed, failed=journal.failed)

    def _at(self, batch: Batch, status: BatchStatus) -> Batch:
        return replace(batch, status=status, times={**batch.times, f"{status}_at": self._clock()})


def _result(custom_id: str, answer: LineAnswer) -> dict[str, Any]:
    response = {"status_code": answer.status, "request_id": secrets.token_hex(16), "body": dict(answer.body)}
    return {"id": f"batch_req_{secrets.token_hex(16)}", "custom_id": custom_id, "response": response, "error": None}
