from __future__ import annotations

import sqlalchemy as sa

from llamastead_server.adapters import schema
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.token_store import SqlTokenStore
from llamastead_server.domain.access.rights import ProjectPattern, Scope
from llamastead_server.domain.access.tokens import Token

CI = Token("ci", "ab" * 32, Scope.WRITE, ProjectPattern("acme"), 1.5, 99.5)
ALL = Token("all", "cd" * 32, Scope.ADMIN, None, 2.0)


async def test_tokens_come_back_as_they_were_after_a_restart(database_url: str) -> None:
    async with Database(database_url) as database:
        store = SqlTokenStore(database)
        assert await store.add(CI)
        assert await store.add(ALL)
    async with Database(database_url) as database:
        assert await SqlTokenStore(database).all() == [ALL, CI]


async def test_a_taken_name_changes_nothing(database_url: str) -> None:
    async with Database(database_url) as database:
        store = SqlTokenStore(database)
        assert await store.add(CI)
        assert not await store.add(Token("ci", "ef" * 32, Scope.ADMIN, None, 3.0))
        assert await store.all() == [CI]


async def test_removing_gives_what_was_removed_once(database_url: str) -> None:
    async with Database(database_url) as database:
        store = SqlTokenStore(database)
        await store.add(CI)
        assert [await store.remove("ci"), await store.remove("ci")] == [CI, None]


async def test_a_database_from_before_there_were_tokens_gets_their_table(database_url: str) -> None:
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        others = [table for table in schema.metadata.sorted_tables if table is not schema.tokens]
        schema.metadata.create_all(connection, others)
        connection.execute(schema._version.insert().values(version=1))
    engine.dispose()
    async with Database(database_url) as database:
        assert await SqlTokenStore(database).add(CI)
