"""The SQL database: files, chunks, sessions and tasks, written by one thread.

SQLite allows one writer at a time; giving writes a thread of their own turns lock contention into a
queue. Readers run beside it in a small pool (WAL lets them). On Postgres the same code runs unchanged;
`postgres` holds what is particular about the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event

from llamastead_server.adapters import postgres, schema
from llamastead_server.domain.errors import Conflict, Unavailable

T = TypeVar("T")
_READERS = 4
_READ_ONLY = "25006"
_DISK_TROUBLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_log = logging.getLogger(__name__)


class Database:
    """Runs functions over a connection: `write` in order on one thread, `read` beside it.

    Each function runs in its own transaction, committed when it returns and rolled back when it raises.
    """

    def __init__(self, url: str, *, for_server: bool = False) -> None:
        try:
            self._url = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            raise Conflict(
                "LLAMASTEAD_DATABASE_URL is no URL: write postgresql://user:password@host/database, and in the "
                "password %40 for @, %3A for : and %2F for /."
            ) from None
        self._is_postgres = self._url.get_backend_name() == "postgresql"
        self._for_server = for_server
        self._alone = False
        self._fails = False
        self._one_at_a_time = threading.Lock()
        self._engine: sa.Engine | None = None
        self._only: postgres.OnlyServer | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="database-reader")

    @classmethod
    def in_folder(cls, folder: Path) -> Database:
        """The embedded database: one SQLite file in the data folder."""
        folder.mkdir(parents=True, exist_ok=True)
        database = cls(f"sqlite:///{folder / 'llamastead.db'}")
        database._alone = True
        return database

    @property
    def alone(self) -> bool:
        """Whether no other server can use it meanwhile: it lies in the data folder, or Postgres keeps others away."""
        return self._alone or self._only is not None

    async def __aenter__(self) -> Database:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Reads whose callers went away come to their end first: the engine would not close their connections.
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.get_running_loop().run_in_executor(self._writer, self._close)
        self._writer.shutdown(wait=False)

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
        with self._worded(), self._engine.begin() as connection:
            return work(connection)

    def _open(self) -> None:
        if self._is_postgres:
            self._engine = self._open_postgres()
            return
        engine = sa.create_engine(self._url, pool_size=_READERS + 1, max_overflow=0)
        event.listen(engine, "connect", _tune_sqlite)
        with self._worded():
            schema.migrate(engine)
        self._engine = engine

    def _open_postgres(self) -> sa.Engine:
        engine = postgres.open_engine(self._url, connections=_READERS + 1)
        only = postgres.OnlyServer(engine) if self._for_server else None
        try:
            postgres.check_encoding(engine)
            schema.migrate(engine)
        except BaseException as error:
            engine.dispose()
            if only is not None:
                only.release()
            if not isinstance(error, sa.exc.DBAPIError):
                raise
            reason = " ".join(str(error.orig).split())
            raise Unavailable(f"The database of LLAMASTEAD_DATABASE_URL can't be used: {reason}") from error
        self._only = only
        return engine

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        if self._only is not None:
            self._only.release()
            self._only = None

    @contextlib.contextmanager
    def _worded(self) -> Iterator[None]:
        """Turns what is said of a disk that fails, or of a Postgres that is away, into words for whoever asked.

        The log has it once: what asks again every second need not say so.
        """
        try:
            yield
        except sa.exc.DBAPIError as error:
            if self._is_postgres:
                if not _is_passing(error):
                    raise
                message = "The database can't be used at the moment; the server's log tells why. Try again shortly."
            elif getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _DISK_TROUBLE:
                message = (
                    f"The database can't be used ({error.orig}): its disk may be full or read-only. Put that right, "
                    "then try again."
                )
            else:
                raise
            if self._turned(fails=True):
                _log.error("the database can't be used: %s", " ".join(str(error.orig).split()))
            raise Unavailable(message, retry_after=2.0) from error
        if self._turned(fails=False):
            _log.info("the database can be used again")

    def _turned(self, *, fails: bool) -> bool:
        with self._one_at_a_time:
            before, self._fails = self._fails, fails
        return before != fails


def _is_passing(error: sa.exc.DBAPIError) -> bool:
    """Whether Postgres may answer later what it does not now: it is away, full, locked or a stand-by."""
    return (
        isinstance(error, sa.exc.OperationalError)
        or error.connection_invalidated
        or getattr(error.orig, "sqlstate", None) == _READ_ONLY
    )


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # FULL: a task or file record that was acknowledged survives a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")
