"""The SQL database: files, chunks, sessions and tasks, written by one thread.

SQLite allows one writer at a time; giving writes a thread of their own turns lock contention into a
queue. Readers run beside it in a small pool (WAL lets them). On Postgres the same code runs unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event

from llamastead_server.adapters import schema
from llamastead_server.domain.errors import Unavailable

T = TypeVar("T")
_READERS = 4
_DISK_TROUBLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)


class Database:
    """Runs functions over a connection: `write` in order on one thread, `read` beside it.

    Each function runs in its own transaction, committed when it returns and rolled back when it raises.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._engine: sa.Engine | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")

    @classmethod
    def in_folder(cls, folder: Path) -> Database:
        """The embedded database: one SQLite file in the data folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder / 'llamastead.db'}")

    async def __aenter__(self) -> Database:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._close)
        self._writer.shutdown(wait=False)
        self._readers.shutdown(wait=False)

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction on the writer thread.

        The write is shielded: a caller that is cancelled while waiting does not tear it in half.
        """
        return await asyncio.shield(self._run(self._writer, work))

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction of its own beside the writer."""
        return await self._run(self._readers, work)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[sa.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, self._transact, work)

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        assert self._engine is not None, "the database is not open"
        with _worded(), self._engine.begin() as connection:
            return work(connection)

    def _open(self) -> None:
        engine = sa.create_engine(self._url, pool_size=_READERS + 1, max_overflow=0)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _tune_sqlite)
        with _worded():
            schema.migrate(engine)
        self._engine = engine

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None


@contextlib.contextmanager
def _worded() -> Iterator[None]:
    """Turns what SQLite says of a disk that fails it into words for whoever asked."""
    try:
        yield
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF not in _DISK_TROUBLE:
            raise
        raise Unavailable(
            f"The database can't be used ({error.orig}): its disk may be full or read-only. Put that right, then try "
            "again."
        ) from error


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # FULL: a task or file record that was acknowledged survives a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")
