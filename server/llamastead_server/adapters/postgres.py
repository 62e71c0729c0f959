"""What a database on Postgres needs that SQLite does not: a network, sessions that end, and one server at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from llamastead_server.domain.errors import Conflict

_CONNECTING: dict[str, Any] = {
    "application_name": "llamastead",
    "connect_timeout": 5,
    # Of a host that is gone nothing is heard: a connection that it owes an answer ends after 10 seconds.
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_WAIT_SECONDS = 3.0
_POLL_SECONDS = 0.1
# By schema: servers whose URLs name schemas of their own share nothing. Steps of the schema take a lock of their own,
# because `llamastead tokens` runs them beside a server.
_KEY = "(hashtextextended('llamastead {} ' || coalesce(current_schema(), ''), 0))"
_MINE = sa.text(f"SELECT pg_try_advisory_lock{_KEY.format('server')}")
_STEPS = sa.text(f"SELECT pg_advisory_xact_lock{_KEY.format('schema')}")
# Postgres looks after two hours, by itself, whether an idle session's host still lives.
_SHORT_LIFE = ("tcp_keepalives_idle = 30", "tcp_keepalives_interval = 5", "tcp_keepalives_count = 3")


def open_engine(url: sa.URL, *, connections: int) -> sa.Engine:
    """An engine whose calls end when Postgres is gone, and find it again when it is back.

    Raises:
        Conflict: The driver is not installed.
    """
    engine = _engine(url, pool_size=connections, max_overflow=0, pool_pre_ping=True)
    event.listen(engine, "connect", _set_up)
    return engine


def check_encoding(engine: sa.Engine) -> None:
    """Refuses a database that can't hold every language's text.

    Raises:
        Conflict: It can't.
    """
    with engine.connect() as connection:
        encoding = connection.execute(sa.text("SHOW server_encoding")).scalar()
    if encoding != "UTF8":
        raise Conflict(
            f"The Postgres database {engine.url.database!r} is encoded in {encoding}, which can't hold every "
            "language's text: make one with ENCODING 'UTF8' TEMPLATE template0."
        )


def alone_in_schema(connection: sa.Connection) -> None:
    """Waits until no other process changes the schema; it is this transaction's turn until it ends."""
    connection.execute(_STEPS)


class OnlyServer:
    """Keeps other servers from a database while one server uses it.

    The rows speak of the data folder's files: a second server, with a folder of its own, would take them for what a
    crash left behind. The lock is a session's, so it goes with this process however that ends. When Postgres was
    restarted it is taken again before anything else is asked.

    Args:
        engine: Engine of the database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        # Out of the pool's way, which may close what it lends.
        self._connect = _engine(engine.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT").connect
        self._database = engine.url.database
        self._one_at_a_time = threading.Lock()
        self._connection: sa.Connection | None = None
        event.listen(engine, "connect", self._look, insert=True)

    def hold(self) -> None:
        """Takes the lock unless this server has it.

        Raises:
            Conflict: Another server has it.
        """
        with self._one_at_a_time:
            if self._connection is not None:
                with contextlib.suppress(sa.exc.DBAPIError):
                    self._connection.execute(sa.select(1))
                    return
                self._give_up()
            connection = self._connect()
            for setting in _SHORT_LIFE:
                connection.execute(sa.text(f"SET {setting}"))
            # That of a server which was just killed may take a moment to go.
            deadline = time.monotonic() + _WAIT_SECONDS
            while not connection.execute(_MINE).scalar():
                if time.monotonic() > deadline:
                    connection.close()
                    raise Conflict(
                        f"Another server uses the Postgres database {self._database!r}: stop that one, or give this "
                        "one a database of its own by LLAMASTEAD_DATABASE_URL."
                    )
                time.sleep(_POLL_SECONDS)
            self._connection = connection

    def release(self) -> None:
        """Lets another server have the database."""
        with self._one_at_a_time:
            self._give_up()

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sa.exc.DBAPIError):
                connection.close()

    def _look(self, connection: Any, _record: Any) -> None:
        """The pool connects: at first, or because Postgres was away and others may have come."""
        try:
            self.hold()
        except BaseException:
            connection.close()
            raise


def _engine(url: sa.URL, **options: Any) -> sa.Engine:
    arguments = {name: value for name, value in _CONNECTING.items() if name not in url.query}
    try:
        return sa.create_engine(url, connect_args=arguments, **options)
    except ImportError as error:
        raise Conflict(
            f"LLAMASTEAD_DATABASE_URL can't be used: {error}. Install the extra `postgres`: "
            "`pip install 'llamastead[postgres]'`, or `make run EXTRAS=postgres` in a checkout."
        ) from None


def _set_up(connection: Any, _record: Any) -> None:
    # As long as SQLite waits for another process.
    connection.execute("SET lock_timeout = '10s'")
    connection.commit()
