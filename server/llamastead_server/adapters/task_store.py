"""Background tasks, in the table `tasks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.schema import tasks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.tasks.records import Task

_ENDED = ("SUCCESS", "FAILURE")
_OPEN = ("PENDING", "RETRY", "STARTED")


class SqlTaskStore:
    """`domain.task_records.TaskStore` over the SQL database.

    `lease_until` of a task nobody works on is the time it is due.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, task: Task) -> None:
        """Adds a pending task."""
        new = tasks.insert().values(
            id=task.id,
            namespace=task.project.namespace,
            project=task.project.name,
            kind=task.kind,
            arguments=dict(task.arguments),
            state=task.state,
            meta=dict(task.meta),
            created_at=task.created_at,
        )
        await self._database.write(lambda connection: connection.execute(new))

    async def get(self, ref: ProjectRef, task_id: str) -> Task | None:
        """One task of a project."""
        query = sa.select(tasks).where(*_in_project(ref), tasks.c.id == task_id)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _task(row)

    async def claim(self, owner: str, kinds: Sequence[str], now: float, lease_until: float) -> Task | None:
        """Takes the oldest task that is due and nobody works on, and counts the attempt."""
        due = tasks.c.state.in_(_OPEN) & (tasks.c.lease_until <= now) & tasks.c.kind.in_(kinds)
        oldest = sa.select(tasks.c.id).where(due).order_by(tasks.c.created_at).limit(1).scalar_subquery()
        taken = (
            tasks.update()
            .where(tasks.c.id == oldest, due)
            .values(state="STARTED", owner=owner, lease_until=lease_until, attempt=tasks.c.attempt + 1)
            .returning(tasks)
        )

        def work(connection: sa.Connection) -> Task | None:
            row = connection.execute(taken).one_or_none()
            return None if row is None else _task(row)

        # A look first: it costs no write when there is nothing to do.
        if await self._database.read(lambda connection: connection.execute(sa.select(oldest)).scalar()) is None:
            return None
        return await self._database.write(work)

    async def renew(self, task_id: str, owner: str, lease_until: float, meta: Mapping[str, Any]) -> bool:
        """Prolongs a lease and records progress; false when the task is lost."""
        change = tasks.update().where(*_held(task_id, owner)).values(lease_until=lease_until, meta=dict(meta))
        return await self._database.write(lambda connection: connection.execute(change).rowcount == 1)

    async def settle(self, task: Task, owner: str, now: float, due_at: float) -> bool:
        """Records how an attempt ended and gives the task up; it is due again at `due_at` unless it has ended."""
        change = (
            tasks.update()
            .where(*_held(task.id, owner))
            .values(
                state=task.state,
                meta=dict(task.meta),
                result=sa.null() if task.result is None else dict(task.result),
                error=task.error,
                traceback=task.traceback,
                attempt=task.attempt,
                owner=None,
                lease_until=due_at,
                finished_at=now if task.ended else None,
            )
        )
        return await self._database.write(lambda connection: connection.execute(change).rowcount == 1)

    async def cancel(self, ref: ProjectRef, task_id: str, now: float) -> bool:
        """Ends a task that has not ended, as cancelled."""
        change = (
            tasks.update()
            .where(*_in_project(ref), tasks.c.id == task_id, tasks.c.state.in_(_OPEN))
            .values(state="FAILURE", cancelled=True, error="The task was cancelled.", owner=None, finished_at=now)
        )
        return await self._database.write(lambda connection: connection.execute(change).rowcount == 1)

    async def annotate(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """Records how far a cancelled task was when it had stopped."""
        change = tasks.update().where(tasks.c.id == task_id, tasks.c.cancelled).values(meta=dict(meta))
        await self._database.write(lambda connection: connection.execute(change))

    async def release_others(self, owner: str) -> int:
        """Ends the leases of all other owners and returns how many there were."""
        change = (
            tasks.update()
            .where(tasks.c.state == "STARTED", tasks.c.owner.is_not(None), tasks.c.owner != owner)
            .values(lease_until=0.0, owner=None)
        )
        return await self._database.write(lambda connection: connection.execute(change).rowcount)

    async def remove_project(self, ref: ProjectRef) -> None:
        """Removes a project's tasks."""
        change = tasks.delete().where(*_in_project(ref))
        await self._database.write(lambda connection: connection.execute(change))

    async def sweep(self, finished_before: float) -> int:
        """Removes tasks that ended before a time and returns how many there were."""
        change = tasks.delete().where(tasks.c.state.in_(_ENDED), tasks.c.finished_at < finished_before)
        return await self._database.write(lambda connection: connection.execute(change).rowcount)


def _task(row: sa.Row[Any]) -> Task:
    return Task(
        id=row.id,
        project=ProjectRef(row.namespace, row.project),
        kind=row.kind,
        arguments=row.arguments,
        created_at=row.created_at,
        state=row.state,
        meta=row.meta,
        result=row.result,
        error=row.error,
        traceback=row.traceback,
        attempt=row.attempt,
        cancelled=row.cancelled,
    )


def _in_project(ref: ProjectRef) -> tuple[sa.ColumnElement[bool], ...]:
    return tasks.c.namespace == ref.namespace, tasks.c.project == ref.name


def _held(task_id: str, owner: str) -> tuple[sa.ColumnElement[bool], ...]:
    return tasks.c.id == task_id, tasks.c.owner == owner, tasks.c.state == "STARTED"
