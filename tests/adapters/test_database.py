from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from llamastead_server.adapters import schema
from llamastead_server.adapters.batch_store import SqlBatchStore
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.file_store import SqlFileStore
from llamastead_server.domain.errors import Conflict, Unavailable
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.tasks.batch_records import BatchFile

TASK = {
    "namespace": "org",
    "project": "bot",
    "kind": "x",
    "arguments": {},
    "state": "PENDING",
    "meta": {},
    "created_at": 0.0,
}


def add(number: int) -> sa.Insert:
    return schema.tasks.insert().values(id=str(number), **TASK)


def count(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(schema.tasks)).scalar_one()


async def test_concurrent_writes_are_all_kept_and_survive_reopening(database_url: str) -> None:
    async with Database(database_url) as database:
        await asyncio.gather(*(database.write(lambda c, n=n: c.execute(add(n))) for n in range(50)))
        assert await database.read(count) == 50
    async with Database(database_url) as database:
        assert await database.read(count) == 50


async def test_a_write_that_fails_leaves_nothing(database_url: str) -> None:
    def half(connection: sa.Connection) -> None:
        connection.execute(add(1))
        raise LookupError

    async with Database(database_url) as database:
        with pytest.raises(LookupError):
            await database.write(half)
        assert await database.read(count) == 0


async def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    def outgrow(connection: sa.Connection) -> None:
        # As many pages as there are now: SQLite then says what it says of a full disk.
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for number in range(10_000):
            connection.execute(add(number))

    async with Database.in_folder(tmp_path) as database:
        with pytest.raises(Unavailable, match="full"):
            await database.write(outgrow)
        assert await database.read(count) == 0


async def test_a_write_goes_to_its_end_when_its_caller_is_cancelled(database_url: str) -> None:
    async with Database(database_url) as database:
        writing = asyncio.create_task(database.write(lambda connection: connection.execute(add(1))))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await database.write(lambda connection: connection.execute(add(2)))
        assert await database.read(count) == 2


async def test_a_record_is_on_disk_when_its_write_returns(tmp_path: Path) -> None:
    async with Database.in_folder(tmp_path) as database:
        settings = await database.read(
            lambda c: [c.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
        )
    assert settings == ["wal", 2]


async def test_a_database_of_a_newer_server_is_refused(database_url: str) -> None:
    async with Database(database_url) as database:
        await database.write(lambda connection: connection.exec_driver_sql("INSERT INTO schema_version VALUES (99)"))
    with pytest.raises(Conflict, match="newer than this server"):
        async with Database(database_url):
            pass


async def test_an_older_database_gets_what_later_servers_added(database_url: str) -> None:
    added = {schema.batch_files.name, schema.batches.name}

    def tables(connection: sa.Connection) -> set[str]:
        return set(sa.inspect(connection).get_table_names())

    def make_old(connection: sa.Connection) -> None:
        for name in added:
            connection.exec_driver_sql(f"DROP TABLE {name}")
        connection.exec_driver_sql("DELETE FROM schema_version WHERE version > 1")

    async with Database(database_url) as database:
        await database.write(lambda connection: connection.execute(add(1)))
        await database.write(make_old)
    async with Database(database_url) as database:
        assert added <= await database.read(tables)
        assert await database.read(count) == 1


async def test_a_database_of_an_older_server_keeps_its_files_and_gets_what_is_new(database_url: str) -> None:
    new = ("parser_overrides", "extractors", "facts")

    def age(connection: sa.Connection) -> None:
        for name in new:
            connection.execute(sa.text(f"ALTER TABLE files DROP COLUMN {name}"))
        connection.execute(sa.text("DELETE FROM schema_version WHERE version > 1"))
        connection.execute(
            sa.text(
                "INSERT INTO files (namespace, project, dataset, hash, filename, mime_type, size, uploaded_at, status,"
                " chunk_count) VALUES ('org', 'bot', 'd', 'h', 'a.txt', 'text/plain', 1, 0, 'processed', 1)"
            )
        )

    async with Database(database_url) as database:
        await database.write(age)
    async with Database(database_url) as database:
        (record,) = await SqlFileStore(database).list_files(ProjectRef("org", "bot"))
        assert (record.filename, record.parser_overrides, record.extractors, record.facts) == ("a.txt", None, (), {})
        await SqlFileStore(database).override(ProjectRef("org", "bot"), "d", "h", {"chunk_size": 100})
        changed = await SqlFileStore(database).get(ProjectRef("org", "bot"), "d", "h")
        assert changed is not None
        assert changed.parser_overrides == {"chunk_size": 100}


async def test_files_of_an_older_server_count_as_ingested_when_they_were_uploaded(database_url: str) -> None:
    ref = ProjectRef("org", "bot")

    def age(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE files DROP COLUMN ingested_at"))
        connection.execute(sa.text("DELETE FROM schema_version WHERE version > 5"))
        for name, status in (("a", "processed"), ("b", "uploaded"), ("c", "failed")):
            connection.execute(
                sa.text(
                    "INSERT INTO files (namespace, project, dataset, hash, filename, mime_type, size, uploaded_at, "
                    f"status, chunk_count) VALUES ('org', 'bot', 'd', '{name}', 'x', 'text/plain', 1, 7, '{status}', 0)"
                )
            )

    async with Database(database_url) as database:
        await database.write(age)
    # Opened twice: a step that ran does not run again.
    for _ in range(2):
        async with Database(database_url) as database:
            records = await SqlFileStore(database).list_files(ref, "d")
            assert [record.ingested_at for record in records] == [7.0, None, None]


async def test_batches_of_an_older_server_belong_to_nobody(database_url: str) -> None:
    def age(connection: sa.Connection) -> None:
        for table in ("batches", "batch_files"):
            connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN owner"))
        connection.execute(sa.text("DELETE FROM schema_version WHERE version > 4"))
        connection.execute(sa.text("INSERT INTO batch_files VALUES ('file-1', 'a.jsonl', 'batch', 1, 0)"))

    async with Database(database_url) as database:
        await database.write(age)
    async with Database(database_url) as database:
        assert await SqlBatchStore(database).get_file("file-1") == BatchFile("file-1", "a.jsonl", "batch", 1, 0.0)
