from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import socket

import pytest
import sqlalchemy as sa

from llamastead_server.adapters import schema
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.database_contents import SqlDatabaseContents
from llamastead_server.adapters.session_store import SqlSessionStore
from llamastead_server.adapters.task_store import SqlTaskStore
from llamastead_server.adapters.token_store import SqlTokenStore
from llamastead_server.domain.access.rights import Scope
from llamastead_server.domain.access.tokens import Token
from llamastead_server.domain.errors import Conflict, Unavailable
from llamastead_server.domain.models.generation import Message
from llamastead_server.domain.names import ProjectRef
from tests.postgres import Postgres

REF = ProjectRef("org", "bot")


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A Postgres that the test may stop."""
    with Postgres() as server:
        yield server


async def version(database: Database) -> int:
    return await database.read(lambda c: c.execute(sa.select(sa.func.max(schema._version.c.version))).scalar_one())


@pytest.mark.parametrize(
    "text", ["a\x00b", "\x00", "\ufdd0", "\ufdd0\ufdd0\x00\ufdd1\x00\x00\ufdd0", "a\\u0000", "🦙'\"%s"]
)
async def test_every_text_comes_back_as_it_was(database_url: str, text: str) -> None:
    async with Database(database_url) as database:
        store = SqlSessionStore(database)
        await store.append(REF, "s", [Message("user", text, tool_call_id=text)], now=1.0, used_since=0.0)
        assert await store.read(REF, "s", 0.0) == [Message("user", text, tool_call_id=text)]


async def test_an_id_that_holds_anything_is_only_unknown(database_url: str) -> None:
    async with Database(database_url) as database:
        assert await SqlTaskStore(database).get(REF, "\x00" + "x" * 300) is None


async def test_names_are_sorted_by_their_characters_codes(database_url: str) -> None:
    names = ["b", "A", "a-b", "aa", "_", "B", "a"]
    async with Database(database_url) as database:
        store = SqlTokenStore(database)
        for name in names:
            await store.add(Token(name, f"digest of {name}", Scope.READ, None, 1.0))
        assert [token.name for token in await store.all()] == sorted(names)


async def test_an_offset_beyond_everything_finds_nothing(database_url: str) -> None:
    async with Database(database_url) as database:
        assert list(await SqlDatabaseContents(database).documents(REF, "main_db", 10, 2**32 - 1)) == []


async def test_a_second_server_is_refused_until_the_first_has_ended(postgres: Postgres) -> None:
    url = postgres.schema()
    async with Database(url, for_server=True) as first:
        assert first.alone
        with pytest.raises(Conflict, match="Another server uses the Postgres database"):
            await Database(url, for_server=True).__aenter__()
        # What runs beside a server, such as `llamastead tokens`, is not.
        async with Database(url) as beside:
            assert not beside.alone
        # Nor is a server over another schema.
        async with Database(postgres.schema(), for_server=True):
            pass
    async with Database(url, for_server=True):
        pass


async def test_processes_that_start_at_once_make_the_tables_once(postgres: Postgres) -> None:
    databases = [Database(url) for url in [postgres.schema()] * 5]
    await asyncio.gather(*(database.__aenter__() for database in databases))
    try:
        assert [await version(database) for database in databases] == [len(schema._STEPS)] * 5
        steps = await databases[0].read(lambda c: c.execute(sa.select(schema._version.c.version)).scalars().all())
        assert sorted(steps) == list(range(1, len(schema._STEPS) + 1))
    finally:
        for database in databases:
            await database.__aexit__(None, None, None)


async def test_a_postgres_that_is_away_is_named_and_found_again(own_postgres: Postgres) -> None:
    async with Database(own_postgres.url, for_server=True) as database:
        await asyncio.gather(*(version(database) for _ in range(8)))
        own_postgres.stop()
        for _ in range(2):
            with pytest.raises(Unavailable, match="at the moment") as caught:
                await version(database)
            assert caught.value.retry_after
            with pytest.raises(Unavailable):
                await SqlTokenStore(database).remove("ci")
        own_postgres.start()
        assert await SqlTokenStore(database).add(Token("ci", "ab", Scope.READ, None, 1.0))
        assert [token.name for token in await SqlTokenStore(database).all()] == ["ci"]
        with pytest.raises(Conflict, match="Another server"):
            await Database(own_postgres.url, for_server=True).__aenter__()


async def test_a_server_that_lost_its_database_to_another_leaves_it_alone(own_postgres: Postgres) -> None:
    async with Database(own_postgres.url, for_server=True) as first:
        await version(first)
        own_postgres.stop()
        own_postgres.start()
        async with Database(own_postgres.url, for_server=True) as second:
            with pytest.raises(Conflict, match="Another server"):
                await SqlTokenStore(first).add(Token("ci", "ab", Scope.READ, None, 1.0))
            assert list(await SqlTokenStore(second).all()) == []
        assert await SqlTokenStore(first).add(Token("ci", "ab", Scope.READ, None, 1.0))


async def test_a_postgres_that_can_t_be_used_is_named_at_the_start(postgres: Postgres) -> None:
    async def refusal(url: str) -> str:
        with pytest.raises((Conflict, Unavailable)) as caught:
            await Database(url, for_server=True).__aenter__()
        return caught.value.message

    assert 'database "nowhere" does not exist' in await refusal(f"{postgres.url.rpartition('/')[0]}/nowhere")
    assert 'role "nobody" does not exist' in await refusal(postgres.url.replace("postgres@", "nobody:secret@"))
    assert "secret" not in await refusal(postgres.url.replace("postgres@", "nobody:secret@"))
    assert "is no URL" in await refusal("postgresql://user:p@ss:word@host:x/y")
    assert "no schema has been selected" in await refusal(f"{postgres.url}?options=-csearch_path%3Dnowhere")
    postgres.run("CREATE ROLE guest LOGIN")
    assert "permission denied for schema" in await refusal(postgres.url.replace("postgres@", "guest@"))
    postgres.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    assert "encoded in LATIN1" in await refusal(f"{postgres.url.rpartition('/')[0]}/latin")


async def test_a_host_that_never_answers_is_given_up() -> None:
    with socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://x@127.0.0.1:{silent.getsockname()[1]}/x?connect_timeout=2"
        with pytest.raises(Unavailable, match="timeout"):
            await Database(url, for_server=True).__aenter__()


async def test_a_missing_driver_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Conflict, match=r"pip install 'llamastead\[postgres\]'"):
        await Database("postgresql://x@127.0.0.1/x").__aenter__()


async def test_a_disk_that_is_full_is_passing(postgres: Postgres, tmp_path: Path) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END $$"))

    async with Database(postgres.schema()) as database:
        with pytest.raises(Unavailable, match="at the moment"):
            await database.write(fail)
