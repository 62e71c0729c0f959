"""Background tasks as they are recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llamastead_server.domain.errors import LlamasteadError
from llamastead_server.domain.names import ProjectRef

TaskState = Literal["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE"]


class TaskFailed(LlamasteadError):
    """A task came to its end, but to no good one.

    Args:
        message: Why, one sentence.
        result: What came of it all the same.
    """

    def __init__(self, message: str, result: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of background work and how far it is.

    Attributes:
        id: Unguessable id.
        project: Project it belongs to.
        kind: Which function runs it.
        arguments: What the function gets.
        state: Where it stands.
        meta: `current`, `total`, `message` and `files`, as its function last reported.
        result: What its function returned.
        error: Why it failed, for people.
        traceback: Where it failed, for developers.
        attempt: How often it was started.
        cancelled: Whether someone cancelled it; its state is then `FAILURE`.
        created_at: Seconds since the epoch.
    """

    id: str
    project: ProjectRef
    kind: str
    arguments: Mapping[str, Any]
    created_at: float
    state: TaskState = "PENDING"
    meta: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    error: str | None = None
    traceback: str | None = None
    attempt: int = 0
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("SUCCESS", "FAILURE")

    def files(self, state: str) -> Sequence[str]:
        """Hashes of its files of one state, as far as it has reported them."""
        return [file["file_hash"] for file in self.meta.get("files", ()) if file["state"] == state]


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What cancelling a task did.

    Attributes:
        before: The task as it was.
        after: The task when its work had stopped.
        done: Whether this call ended it.
        stopped: Whether its work has stopped; when another server runs it, that takes until its next heartbeat.
    """

    before: Task
    after: Task
    done: bool
    stopped: bool

    @property
    def waiting(self) -> int:
        """Files that had not been started."""
        return len(self.before.files("pending")) if self.done else 0

    @property
    def in_work(self) -> int:
        """Files that were in work."""
        return len(self.before.files("processing")) if self.done else 0

    @property
    def reverted(self) -> int:
        """Files in work that are again as they were uploaded."""
        return len(set(self.before.files("processing")) & set(self.after.files("pending"))) if self.done else 0

    @property
    def not_reverted(self) -> int:
        """Files in work whose chunks may still be there."""
        return len(set(self.before.files("processing")) & set(self.after.files("processing"))) if self.done else 0


class TaskStore(Protocol):
    """The rows. Every change by a runner names its owner and fails when the task is no longer its own."""

    async def add(self, task: Task) -> None:
        """Adds a pending task."""
        ...

    async def get(self, ref: ProjectRef, task_id: str) -> Task | None:
        """One task of a project."""
        ...

    async def claim(self, owner: str, kinds: Sequence[str], now: float, lease_until: float) -> Task | None:
        """Takes the oldest task that is due and nobody works on, and counts the attempt."""
        ...

    async def renew(self, task_id: str, owner: str, lease_until: float, meta: Mapping[str, Any]) -> bool:
        """Prolongs a lease and records progress; false when the task is lost."""
        ...

    async def settle(self, task: Task, owner: str, now: float, due_at: float) -> bool:
        """Records how an attempt ended and gives the task up; it is due again at `due_at` unless it has ended."""
        ...

    async def cancel(self, ref: ProjectRef, task_id: str, now: float) -> bool:
        """Ends a task that has not ended, as cancelled."""
        ...

    async def annotate(self, task_id: str, meta: Mapping[str, Any]) -> None:
        """Records how far a cancelled task was when it had stopped."""
        ...

    async def release_others(self, owner: str) -> int:
        """Ends the leases of all other owners and returns how many there were."""
        ...

    async def remove_project(self, ref: ProjectRef) -> None:
        """Removes a project's tasks."""
        ...

    async def sweep(self, finished_before: float) -> int:
        """Removes tasks that ended before a time and returns how many there were."""
        ...
