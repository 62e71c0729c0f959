"""Background work that survives the server: tasks are rows with a lease, and the runner works them off.

A claimed task belongs to its runner until the lease ends; a heartbeat renews it. When the server dies, the
lease runs out (or the next server over the same data takes the task back at once) and the task is delivered
again, so a task's function must be idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamastead_server.domain.errors import LlamasteadError, NotFound, Overloaded, RequestTimeout, Unavailable
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Clock, TaskFunction
from llamastead_server.domain.tasks.records import Cancellation, Task, TaskFailed, TaskStore

_log = logging.getLogger("llamastead.tasks")

_WORTH_RETRYING = (Unavailable, Overloaded, RequestTimeout)
_LONGEST_PAUSE = 60.0
_SWEEP_INTERVAL = 3600.0
_LONGEST_STOP = 20.0
"""Seconds that cancelling and deleting wait for the work to stop."""


@dataclass(frozen=True, slots=True)
class TaskRules:
    """How tasks are run; times in seconds.

    Attributes:
        concurrency: Tasks run at once.
        attempts: Starts after which a task is given up, interrupted ones included.
        lease: Time after which a silent runner's task is taken over.
        poll: Pause between two looks for tasks of other servers and for retries.
        first_pause: Pause before the first retry; doubles with each.
        keep: Time a finished task can be looked up.
    """

    concurrency: int = 2
    attempts: int = 5
    lease: float = 30.0
    poll: float = 1.0
    first_pause: float = 1.0
    keep: float = 7 * 86400.0


class TaskRunner:
    """Submits tasks and, between `start` and `stop`, runs them.

    Args:
        store: The rows.
        functions: What runs each kind of task.
        clock: Seconds since the epoch.
        alone: Whether no other server shares the rows: tasks of a previous run are then taken back at once.
        rules: How tasks are run.
    """

    def __init__(
        self,
        store: TaskStore,
        functions: Mapping[str, TaskFunction],
        clock: Clock,
        *,
        alone: bool,
        rules: TaskRules | None = None,
    ) -> None:
        self._store = store
        self._functions = dict(functions)
        self._clock = clock
        self._alone = alone
        self._rules = rules or TaskRules()
        self._owner = uuid.uuid4().hex
        self._submitted = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._running: dict[str, _Lease] = {}

    async def start(self) -> None:
        """Takes back what a previous run left, then begins to work."""
        if self._alone and (count := await self._store.release_others(self._owner)):
            _log.info("%d tasks of a previous run will be run again", count)
        self._loops = [
            asyncio.create_task(self._work(), name=f"task-runner-{number}") for number in range(self._rules.concurrency)
        ]
        self._loops.append(asyncio.create_task(self._sweep(), name="task-sweeper"))

    async def stop(self) -> None:
        """Stops; running tasks are cancelled and go back to the queue."""
        loops, self._loops = self._loops, []
        for loop in loops:
            loop.cancel()
        if loops:
            await asyncio.wait(loops)

    async def submit(
        self, ref: ProjectRef, kind: str, arguments: Mapping[str, Any], meta: Mapping[str, Any] | None = None
    ) -> Task:
        """Queues a task; it is durable when this returns.

        Args:
            ref: The project.
            kind: Which function runs it.
            arguments: What the function gets.
            meta: What is known of its progress before it begins.
        """
        if kind not in self._functions:
            raise ValueError(f"no function runs tasks of the kind {kind!r}")
        task = Task(str(uuid.uuid4()), ref, kind, dict(arguments), self._clock(), meta=dict(meta or {}))
        await self._store.add(task)
        self._submitted.set()
        return task

    async def get(self, ref: ProjectRef, task_id: str) -> Task:
        """Looks a task up.

        Raises:
            NotFound: The project has no such task, or it ended too long ago.
        """
        task = await self._store.get(ref, task_id)
        if task is None:
            raise NotFound(f"Task {task_id[:100]!r} not found in project {ref}.")
        return task

    async def watch(self, ref: ProjectRef, task_id: str, *, every: float = 0.2) -> AsyncIterator[Task]:
        """Yields the task now, then whenever it has changed, until it has ended.

        Args:
            ref: The project.
            task_id: The task.
            every: Seconds between two looks.
        """
        task = await self.get(ref, task_id)
        yield task
        while not task.ended:
            await asyncio.sleep(every)
            now = await self.get(ref, task_id)
            if now != task:
                task = now
                yield task

    async def cancel(self, ref: ProjectRef, task_id: str) -> Cancellation:
        """Ends a task, and waits until its work has stopped when this server runs it.

        A task that another server runs stops at its next heartbeat. One that has ended stays as it is.

        Raises:
            NotFound: The project has no such task.
        """
        before = await self.get(ref, task_id)
        done = await self._store.cancel(ref, task_id, self._clock())
        lease = self._running.get(task_id)
        stopped = not done or before.state != "STARTED"
        if lease is not None:
            lease.lost.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_STOP):
                    await lease.stopped.wait()
                    stopped = True
        return Cancellation(before, await self.get(ref, task_id), done, stopped)

    async def delete_project(self, ref: ProjectRef) -> None:
        """Removes a project's tasks, and waits until the work of those that run here has stopped."""
        await self._store.remove_project(ref)
        leases = [lease for lease in self._running.values() if lease.project == ref]
        for lease in leases:
            lease.lost.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_STOP):
                for lease in leases:
                    await lease.stopped.wait()

    async def _work(self) -> None:
        while True:
            self._submitted.clear()
            try:
                task = await self._claim()
            except Exception as error:
                # What is away for a while has been said where it was noticed.
                if not isinstance(error, Unavailable):
                    _log.exception("looking for tasks failed")
                task = None
                await asyncio.sleep(self._rules.poll)
            if task is not None:
                await self._run_safely(task)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rules.poll):
                    await self._submitted.wait()

    async def _run_safely(self, task: Task) -> None:
        """Runs one attempt; what can't be recorded, as on a full disk, is tried again when the lease has run out."""
        try:
            await self._run(task)
        except Exception:
            _log.exception("recording how task %s ended failed", task.id)
            await asyncio.sleep(self._rules.poll)

    async def _claim(self) -> Task | None:
        now = self._clock()
        return await self._store.claim(self._owner, list(self._functions), now, now + self._rules.lease)

    async def _sweep(self) -> None:
        while True:
            try:
                await self._store.sweep(self._clock() - self._rules.keep)
            except Exception:
                _log.exception("forgetting old tasks failed")
            await asyncio.sleep(_SWEEP_INTERVAL)

    async def _run(self, task: Task) -> None:
        """Runs one attempt of a claimed task: to its end, to its loss, or until this server stops."""
        if task.attempt > self._rules.attempts:
            error = f"The task was started {self._rules.attempts} times and never came to its end."
            await self._settle(replace(task, state="FAILURE", error=error))
            return
        lease = self._running[task.id] = _Lease(self._store, task, self._owner, self._rules.lease, self._clock)
        work = asyncio.ensure_future(self._functions[task.kind](task.project, task.arguments, lease))
        beat = asyncio.create_task(lease.hold())
        settled = False
        try:
            await asyncio.wait([work, beat], return_when=asyncio.FIRST_COMPLETED)
            settled = True
            if work.done():
                await self._settle(self._outcome(task, work, lease.meta))
        finally:
            del self._running[task.id]
            beat.cancel()
            work.cancel()
            await asyncio.wait([work, beat])
            if settled and lease.lost.is_set():
                await asyncio.shield(self._store.annotate(task.id, lease.meta))
            lease.stopped.set()
            if not settled:
                given_back = replace(task, state="PENDING", meta=lease.meta, attempt=task.attempt - 1)
                await asyncio.shield(self._settle(given_back))

    def _outcome(self, task: Task, work: asyncio.Future[Mapping[str, Any]], meta: Mapping[str, Any]) -> Task:
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None:
            return replace(task, state="SUCCESS", meta=meta, result=work.result(), error=None, traceback=None)
        expected = isinstance(error, LlamasteadError)
        if not expected:
            _log.error("task %s (%s of %s) failed", task.id, task.kind, task.project, exc_info=error)
        again = task.attempt < self._rules.attempts and (not expected or isinstance(error, _WORTH_RETRYING))
        return replace(
            task,
            state="RETRY" if again else "FAILURE",
            meta=meta,
            result=error.result if isinstance(error, TaskFailed) else None,
            error=error.message if isinstance(error, LlamasteadError) else f"{type(error).__name__}: {error}",
            traceback=None if expected else "".join(traceback.format_exception(error)),
        )

    async def _settle(self, task: Task) -> None:
        now = self._clock()
        pause = min(self._rules.first_pause * 2 ** (task.attempt - 1), _LONGEST_PAUSE) if task.state == "RETRY" else 0.0
        await self._store.settle(task, self._owner, now, now + pause)


class _Lease:
    """The hold on a running task: renewed by the heartbeat and by each report of progress."""

    def __init__(self, store: TaskStore, task: Task, owner: str, length: float, clock: Clock) -> None:
        self._store = store
        self._task = task
        self.project = task.project
        self._owner = owner
        self._length = length
        self._clock = clock
        self.meta: Mapping[str, Any] = task.meta
        self.lost = asyncio.Event()
        self.stopped = asyncio.Event()

    async def report(
        self, current: int, total: int, message: str = "", files: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Records progress."""
        self.meta = {"current": current, "total": total, "message": message, "files": list(files)}
        await self._renew()

    async def hold(self) -> None:
        """Renews the lease; returns when the task was cancelled, removed or taken over."""
        while not self.lost.is_set():
            try:
                async with asyncio.timeout(self._length / 3):
                    await self.lost.wait()
            except TimeoutError:
                await self._renew()

    async def _renew(self) -> None:
        until = self._clock() + self._length
        if not await self._store.renew(self._task.id, self._owner, until, self.meta):
            self.lost.set()
