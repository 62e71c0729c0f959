"""The latest log entries, kept in memory, and those to come."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from llamastead_server.domain.errors import InvalidRequest

LEVELS: Mapping[str, int] = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
DEFAULT_LIMIT = 100
MOST_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One log line.

    Attributes:
        time: When it was written, in seconds since the epoch.
        level: One of `LEVELS`.
        logger: Part of the server that wrote it.
        message: What happened.
        request_id: Request it belongs to; empty outside requests.
        fields: Further facts, as JSON data.
    """

    time: float
    level: str
    logger: str
    message: str
    request_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which entries to return.

    Attributes:
        least: Least severe level, as a number.
        limit: Most entries, the latest ones.
        start: Earliest time, in seconds since the epoch.
        end: Latest time.
    """

    least: int = 0
    limit: int = DEFAULT_LIMIT
    start: float = 0.0
    end: float = float("inf")

    @classmethod
    def parse(cls, level: str | None, limit: int | None, start: str | None, end: str | None) -> LogQuery:
        """Reads a query as it comes from outside.

        Raises:
            InvalidRequest: A value is malformed; the message names it.
        """
        if level and level.upper() not in LEVELS:
            raise InvalidRequest(f"level must be one of {', '.join(LEVELS)}.", details={"field": "level"})
        if limit is not None and not 1 <= limit <= MOST_ENTRIES:
            raise InvalidRequest(f"limit must be between 1 and {MOST_ENTRIES}.", details={"field": "limit"})
        since, until = _time("start_time", start), _time("end_time", end)
        if since is not None and until is not None and since > until:
            raise InvalidRequest("start_time must not come after end_time.", details={"field": "start_time"})
        return cls(
            LEVELS[level.upper()] if level else 0,
            DEFAULT_LIMIT if limit is None else limit,
            0.0 if since is None else since,
            float("inf") if until is None else until,
        )

    def takes(self, entry: LogEntry) -> bool:
        """Whether an entry is meant."""
        return LEVELS.get(entry.level, 0) >= self.least and self.start <= entry.time <= self.end


class LogBook:
    """Holds the latest entries; written from any thread, read on the event loop.

    Args:
        capacity: Entries to keep.
    """

    def __init__(self, capacity: int = MOST_ENTRIES) -> None:
        self._entries: deque[tuple[int, LogEntry]] = deque(maxlen=capacity)
        self._lock = threading.Lock()
        self._count = 0
        self._followers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._followed = True

    def add(self, entry: LogEntry) -> None:
        """Appends an entry; the oldest goes when there is no room."""
        with self._lock:
            self._count += 1
            self._entries.append((self._count, entry))
        self._wake()

    def read(self, query: LogQuery) -> Sequence[LogEntry]:
        """The latest entries that a query means, oldest first."""
        return self._read(query)[0]

    async def follow(self, query: LogQuery) -> AsyncGenerator[LogEntry, None]:
        """The same, then new entries as they come.

        A reader that is too slow misses those that were pushed out meanwhile: it holds no memory of its own.
        """
        news = asyncio.Event()
        with self._lock:
            self._followers[news] = asyncio.get_running_loop()
        try:
            entries, seen = self._read(query)
            while True:
                for entry in entries:
                    yield entry
                if not self._followed:
                    return
                await news.wait()
                news.clear()
                entries, seen = self._since(seen, query)
        finally:
            with self._lock:
                del self._followers[news]

    def end_following(self) -> None:
        """Ends what follows it, and what would; entries are still kept."""
        self._followed = False
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            followers = list(self._followers.items())
        for news, loop in followers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(news.set)

    def _read(self, query: LogQuery) -> tuple[Sequence[LogEntry], int]:
        with self._lock:
            found: list[LogEntry] = []
            for _, entry in reversed(self._entries):
                if query.takes(entry):
                    found.append(entry)
                    if len(found) == query.limit:
                        break
            return found[::-1], self._count

    def _since(self, seen: int, query: LogQuery) -> tuple[Sequence[LogEntry], int]:
        with self._lock:
            found: list[LogEntry] = []
            for number, entry in reversed(self._entries):
                if number <= seen:
                    break
                if query.takes(entry):
                    found.append(entry)
            return found[::-1], self._count


def _time(name: str, text: str | None) -> float | None:
    if not text:
        return None
    try:
        # A plus that nobody escaped in a query arrives as a space.
        time = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise InvalidRequest(
            f"{name} must be a time in ISO 8601, such as 2026-01-31T12:00:00Z.", details={"field": name}
        ) from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
