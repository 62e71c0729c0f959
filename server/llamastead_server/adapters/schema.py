"""The tables, and the versioned steps that bring an older database up to them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters import postgres
from llamastead_server.domain.errors import Conflict


class _Words(sa.types.TypeDecorator[str]):
    """Text that Postgres keeps as SQLite does: of any length, compared by its characters' codes, NUL and all.

    Postgres' text has no NUL, so there a pair of noncharacters stands for it, and another for the first of them.
    """

    impl = sa.Text
    cache_ok = True
    _PAIRS = (("\ufdd0", "\ufdd0\ufdd1"), ("\x00", "\ufdd0\ufdd0"))

    def __init__(self, length: int | None = None) -> None:
        super().__init__(length)
        self._length = length

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sa.Text(collation="C"))
        return dialect.type_descriptor(sa.Text() if self._length is None else sa.String(self._length))

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is not None and dialect.name == "postgresql":
            for plain, kept in self._PAIRS:
                value = value.replace(plain, kept)
        return value

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is not None and dialect.name == "postgresql":
            for plain, kept in reversed(self._PAIRS):
                value = value.replace(kept, plain)
        return value


metadata = sa.MetaData()

_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))

files = sa.Table(
    "files",
    metadata,
    sa.Column("namespace", _Words(100), primary_key=True),
    sa.Column("project", _Words(100), primary_key=True),
    sa.Column("dataset", _Words(100), primary_key=True),
    sa.Column("hash", _Words(64), primary_key=True),
    sa.Column("filename", _Words(255), nullable=False),
    sa.Column("mime_type", _Words(255), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("uploaded_at", sa.Float, nullable=False),
    # uploaded, processing, processed, failed, deleting
    sa.Column("status", _Words(20), nullable=False),
    sa.Column("error", _Words()),
    sa.Column("parser", _Words(100)),
    sa.Column("chunk_count", sa.Integer, nullable=False, default=0),
    sa.Column("chunk_size", sa.Integer),
    sa.Column("embedding_model", _Words(255)),
    sa.Column("processed_with", _Words(64)),
    sa.Column("parser_overrides", sa.JSON(none_as_null=True)),
    sa.Column("extractors", sa.JSON(none_as_null=True)),
    sa.Column("facts", sa.JSON(none_as_null=True)),
    sa.Column("ingested_at", sa.Float),
)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("id", _Words(64), primary_key=True),
    sa.Column("namespace", _Words(100), nullable=False),
    sa.Column("project", _Words(100), nullable=False),
    sa.Column("database", _Words(100), nullable=False),
    sa.Column("dataset", _Words(100), nullable=False),
    sa.Column("file_hash", _Words(64), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("text", _Words(), nullable=False),
    sa.Column("page", sa.Integer),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Index("chunks_by_file", "namespace", "project", "dataset", "file_hash", "ordinal"),
    sa.Index("chunks_by_database", "namespace", "project", "database"),
)

databases = sa.Table(
    "databases",
    metadata,
    sa.Column("namespace", _Words(100), primary_key=True),
    sa.Column("project", _Words(100), primary_key=True),
    sa.Column("name", _Words(100), primary_key=True),
    sa.Column("embedding_model", _Words(255), nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("metric", _Words(20), nullable=False),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("namespace", _Words(100), primary_key=True),
    sa.Column("project", _Words(100), primary_key=True),
    sa.Column("id", _Words(128), primary_key=True),
    sa.Column("used_at", sa.Float, nullable=False),
    sa.Index("sessions_by_use", "used_at"),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("namespace", _Words(100), nullable=False),
    sa.Column("project", _Words(100), nullable=False),
    sa.Column("session_id", _Words(128), nullable=False),
    sa.Column("role", _Words(20), nullable=False),
    sa.Column("content", _Words(), nullable=False),
    sa.Column("extra", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(
        ["namespace", "project", "session_id"],
        ["sessions.namespace", "sessions.project", "sessions.id"],
        ondelete="CASCADE",
    ),
    sa.Index("messages_by_session", "namespace", "project", "session_id", "number"),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", _Words(64), primary_key=True),
    sa.Column("namespace", _Words(100), nullable=False),
    sa.Column("project", _Words(100), nullable=False),
    sa.Column("kind", _Words(50), nullable=False),
    sa.Column("arguments", sa.JSON, nullable=False),
    # PENDING, STARTED, RETRY, SUCCESS, FAILURE
    sa.Column("state", _Words(20), nullable=False),
    sa.Column("meta", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("error", _Words()),
    sa.Column("traceback", _Words()),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("owner", _Words(64)),
    sa.Column("lease_until", sa.Float, nullable=False, default=0.0),
    sa.Column("cancelled", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Index("tasks_by_state", "state", "created_at"),
    sa.Index("tasks_by_project", "namespace", "project"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("name", _Words(100), primary_key=True),
    sa.Column("digest", _Words(64), nullable=False, unique=True),
    # read, write, admin
    sa.Column("scope", _Words(20), nullable=False),
    # namespace/project or namespace/*
    sa.Column("projects", _Words(201)),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
)


batch_files = sa.Table(
    "batch_files",
    metadata,
    sa.Column("id", _Words(64), primary_key=True),
    sa.Column("filename", _Words(255), nullable=False),
    # batch, batch_output
    sa.Column("purpose", _Words(20), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    # Null: made before owners were kept.
    sa.Column("owner", _Words(200)),
    sa.Index("batch_files_by_time", "created_at", "id"),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", _Words(64), primary_key=True),
    sa.Column("endpoint", _Words(100), nullable=False),
    sa.Column("input_file_id", _Words(64), nullable=False),
    sa.Column("output_file_id", _Words(64), nullable=False),
    sa.Column("error_file_id", _Words(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("status", _Words(20), nullable=False),
    sa.Column("times", sa.JSON, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("completed", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("errors", sa.JSON, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("owner", _Words(200)),
    sa.Index("batches_by_time", "created_at", "id"),
    sa.Index("batches_by_status", "status"),
)


def _create_all(connection: sa.Connection) -> None:
    metadata.create_all(connection)


def _add_tokens(connection: sa.Connection) -> None:
    tokens.create(connection, checkfirst=True)


def _add_batches(connection: sa.Connection) -> None:
    metadata.create_all(connection, tables=[batch_files, batches])


def _describe_files(connection: sa.Connection) -> None:
    """Adds what extractors find, and a file's own parser settings; a new database has the columns already."""
    there = {column["name"] for column in sa.inspect(connection).get_columns("files")}
    for name in ("parser_overrides", "extractors", "facts"):
        if name not in there:
            connection.execute(sa.text(f"ALTER TABLE files ADD COLUMN {name} JSON"))


def _own_batches(connection: sa.Connection) -> None:
    """Adds whose a batch and its files are; a new database has the columns already."""
    for table in (batch_files.name, batches.name):
        if "owner" not in {column["name"] for column in sa.inspect(connection).get_columns(table)}:
            connection.execute(sa.text(f"ALTER TABLE {table} ADD COLUMN owner VARCHAR(200)"))


def _date_ingestion(connection: sa.Connection) -> None:
    """Adds when files were ingested; of those that are there only the upload is known, so it stands in for it."""
    if "ingested_at" not in {column["name"] for column in sa.inspect(connection).get_columns(files.name)}:
        connection.execute(sa.text("ALTER TABLE files ADD COLUMN ingested_at FLOAT"))
        connection.execute(sa.text("UPDATE files SET ingested_at = uploaded_at WHERE status = 'processed'"))


_STEPS = (_create_all, _add_tokens, _describe_files, _add_batches, _own_batches, _date_ingestion)


def migrate(engine: sa.Engine) -> None:
    """Runs the steps this database has not seen, each in the transaction that records it.

    Raises:
        Conflict: A newer server wrote this database.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            postgres.alone_in_schema(connection)
        _version.create(connection, checkfirst=True)
        current = connection.execute(sa.select(sa.func.max(_version.c.version))).scalar() or 0
        if current > len(_STEPS):
            raise Conflict(
                f"The database is of version {current}, newer than this server's {len(_STEPS)}: upgrade the server."
            )
        for number, step in enumerate(_STEPS[current:], current + 1):
            step(connection)
            connection.execute(_version.insert().values(version=number))
