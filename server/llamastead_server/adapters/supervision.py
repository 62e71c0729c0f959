"""The rules by which a worker is watched, and what it says when it is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself: `loading`, `ready` or `failed`, and why it failed."""

    state: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Supervision:
    """How closely a worker is watched, in seconds.

    Attributes:
        start_timeout: Longest time from spawning to ready, loading included.
        heartbeat_interval: Pause between two status calls to a ready worker.
        heartbeat_timeout: Longest time one status call may take.
        heartbeat_failures: Status calls in a row that must fail before the worker counts as hung.
        first_backoff: Pause before the first restart; doubles with each failure in a row.
        longest_backoff: Upper bound of that pause.
        stop_grace: Time between SIGTERM and SIGKILL.
    """

    start_timeout: float = 600.0
    heartbeat_interval: float = 2.0
    heartbeat_timeout: float = 5.0
    heartbeat_failures: int = 3
    first_backoff: float = 0.5
    longest_backoff: float = 30.0
    stop_grace: float = 5.0
