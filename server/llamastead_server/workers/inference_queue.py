"""The embedder's one inference thread and the queue before it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Infer = Callable[[Sequence[Any]], Floats]
"""Takes a batch of inputs, gives one row (or number) per input."""


class QueueFull(Exception):
    """The request does not fit into the queue."""


@dataclass(eq=False, slots=True)
class _Job:
    infer: Infer
    inputs: Sequence[Any]
    # Positions in `inputs` still to be taken, the shortest last: they are popped from the end.
    waiting: list[int]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Floats]
    rows: dict[int, Any] = field(default_factory=dict)
    dropped: bool = False


class InferenceQueue:
    """Feeds one thread with micro-batches from two bounded queues, urgent requests first.

    A batch takes inputs of several requests for the same model, sorted by length within a request so that
    little is padded. Long requests are done a batch at a time, so an urgent one waits for one batch at most.

    Args:
        batch: Most inputs in one batch.
        urgent_limit: Most inputs of urgent requests that may wait.
        limit: Most inputs of the others that may wait.
    """

    def __init__(self, *, batch: int = 8, urgent_limit: int = 512, limit: int = 4096) -> None:
        self._batch = batch
        self._limits = {True: urgent_limit, False: limit}
        self._jobs: dict[bool, deque[_Job]] = {True: deque(), False: deque()}
        self._changed = threading.Condition()
        self._running = 0
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    @property
    def size(self) -> int:
        """Inputs that wait or are being worked on."""
        with self._changed:
            return self._running + sum(len(job.waiting) for jobs in self._jobs.values() for job in jobs)

    async def run(self, infer: Infer, inputs: Sequence[Any], lengths: Sequence[int], *, urgent: bool) -> Floats:
        """Runs `infer` over all inputs and gives its rows in order; a cancelled request is dropped.

        Raises:
            QueueFull: Too much waits already; nothing was done.
        """
        loop = asyncio.get_running_loop()
        order = sorted(range(len(inputs)), key=lambda position: lengths[position], reverse=True)
        job = _Job(infer, inputs, order, loop, loop.create_future())
        with self._changed:
            jobs = self._jobs[urgent]
            if len(inputs) + sum(len(other.waiting) for other in jobs) > self._limits[urgent]:
                raise QueueFull
            jobs.append(job)
            self._changed.notify()
        try:
            return await job.done
        finally:
            with self._changed:
                job.dropped = True
                if job in jobs:
                    jobs.remove(job)

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            rows: Floats | Exception
            try:
                rows = batch[0][0].infer([job.inputs[position] for job, position in batch])
            except Exception as error:
                rows = error
            with self._changed:
                self._running = 0
            if isinstance(rows, Exception):
                for job in {job for job, _ in batch}:
                    self._fail(job, rows)
                continue
            for (job, position), row in zip(batch, rows, strict=True):
                job.rows[position] = row
                if len(job.rows) == len(job.inputs):
                    self._finish(job)

    def _next_batch(self) -> list[tuple[_Job, int]]:
        with self._changed:
            while True:
                for urgent in (True, False):
                    batch = self._take(self._jobs[urgent])
                    if batch:
                        self._running = len(batch)
                        return batch
                self._changed.wait()

    def _take(self, jobs: deque[_Job]) -> list[tuple[_Job, int]]:
        batch: list[tuple[_Job, int]] = []
        while jobs and len(batch) < self._batch:
            job = jobs[0]
            if job.dropped or not job.waiting:
                jobs.popleft()
            elif batch and batch[0][0].infer != job.infer:
                break
            else:
                batch.append((job, job.waiting.pop()))
        return batch

    def _finish(self, job: _Job) -> None:
        rows = np.asarray([job.rows[position] for position in range(len(job.inputs))], dtype=np.float32)
        job.loop.call_soon_threadsafe(_settle, job.done, rows)

    def _fail(self, job: _Job, error: Exception) -> None:
        with self._changed:
            job.dropped = True
        job.loop.call_soon_threadsafe(_settle, job.done, error)


def _settle(done: asyncio.Future[Floats], outcome: Floats | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
