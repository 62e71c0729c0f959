from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.token_store import SqlTokenStore
from llamastead_server.domain.access.rights import ProjectPattern, Scope
from llamastead_server.domain.access.tokens import Token, Tokens
from llamastead_server.domain.errors import AlreadyExists, InvalidRequest, NotFound
from tests.fake_clock import FakeClock


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[SqlTokenStore]:
    async with Database(database_url) as database:
        yield SqlTokenStore(database)


async def test_a_token_is_recognised_by_its_secret_alone(store: SqlTokenStore) -> None:
    tokens = Tokens(store, FakeClock())
    token, secret = await tokens.create("ci", Scope.WRITE, ProjectPattern("acme", "bot"))
    caller = tokens.recognise(secret)
    assert caller is not None
    assert (caller.id, caller.scope, caller.projects) == ("token:ci", Scope.WRITE, ProjectPattern("acme", "bot"))
    assert [tokens.recognise(wrong) for wrong in ("", "ci", secret[:-1], secret + "x", token.digest)] == [None] * 5


async def test_secrets_are_long_random_and_kept_nowhere(tmp_path: Path) -> None:
    async with Database.in_folder(tmp_path) as database:
        tokens = Tokens(SqlTokenStore(database), FakeClock())
        made = [(await tokens.create(f"t{number}", Scope.READ))[1] for number in range(20)]
        assert len(set(made)) == 20
        assert all(len(secret) >= 43 for secret in made)
        on_disk = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert not [secret for secret in made if secret.encode() in on_disk]


async def test_a_token_ends_when_its_time_is_over(store: SqlTokenStore) -> None:
    clock = FakeClock()
    tokens = Tokens(store, clock)
    _, secret = await tokens.create("short", Scope.READ, lifetime=60)
    clock.now += 59
    assert tokens.recognise(secret) is not None
    assert tokens.usable
    clock.now += 1
    assert tokens.recognise(secret) is None
    assert not tokens.usable
    assert [token.name for token in await tokens.list_tokens()] == ["short"]


async def test_what_another_process_creates_and_revokes_counts_after_a_refresh(store: SqlTokenStore) -> None:
    server, command = Tokens(store, FakeClock()), Tokens(store, FakeClock())
    _, secret = await command.create("ci", Scope.READ)
    await server.refresh()
    assert server.recognise(secret) is not None
    await command.revoke("ci")
    await server.refresh()
    assert server.recognise(secret) is None


async def test_the_first_token_closes_the_server_and_revoking_the_last_does_not_open_it(store: SqlTokenStore) -> None:
    tokens = Tokens(store, FakeClock())
    assert not tokens.required
    await tokens.create("only", Scope.ADMIN)
    assert tokens.required
    await tokens.revoke("only")
    assert tokens.required
    assert not tokens.usable
    restarted = Tokens(store, FakeClock())
    await restarted.refresh()
    assert not restarted.required


async def test_a_server_others_can_reach_is_never_open(store: SqlTokenStore) -> None:
    assert Tokens(store, FakeClock(), exposed=True).required


async def test_tokens_of_the_settings_are_for_administrators_and_stay_beside_others(store: SqlTokenStore) -> None:
    tokens = Tokens(store, FakeClock(), fixed=["from-settings"])
    _, secret = await tokens.create("ci", Scope.READ)
    await tokens.revoke("ci")
    caller = tokens.recognise("from-settings")
    assert caller is not None
    assert (caller.scope, caller.projects) == (Scope.ADMIN, None)
    assert tokens.recognise(secret) is None


async def test_a_name_is_given_once_until_it_is_revoked(store: SqlTokenStore) -> None:
    tokens = Tokens(store, FakeClock())
    _, first = await tokens.create("ci", Scope.READ)
    with pytest.raises(AlreadyExists, match="'ci'"):
        await tokens.create("ci", Scope.ADMIN)
    assert tokens.recognise(first) is not None
    await tokens.revoke("ci")
    _, second = await tokens.create("ci", Scope.READ)
    assert tokens.recognise(first) is None
    assert tokens.recognise(second) is not None


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 101, "-x"])
async def test_a_name_that_is_none_is_refused(store: SqlTokenStore, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await Tokens(store, FakeClock()).create(name, Scope.READ)


@pytest.mark.parametrize("lifetime", [0, -1, 0.5, 1e12, float("nan"), float("inf")])
async def test_a_lifetime_that_makes_no_sense_is_refused(store: SqlTokenStore, lifetime: float) -> None:
    with pytest.raises(InvalidRequest):
        await Tokens(store, FakeClock()).create("ci", Scope.READ, lifetime=lifetime)


async def test_an_administrator_cannot_be_restricted_to_a_project(store: SqlTokenStore) -> None:
    with pytest.raises(InvalidRequest, match="admin"):
        await Tokens(store, FakeClock()).create("ci", Scope.ADMIN, ProjectPattern("acme"))


async def test_revoking_what_is_not_there_says_so(store: SqlTokenStore) -> None:
    with pytest.raises(NotFound, match="'absent'"):
        await Tokens(store, FakeClock()).revoke("absent")


async def test_wrong_tokens_cost_no_look_into_the_store() -> None:
    class Counting:
        asked = 0

        async def add(self, token: Token) -> bool:
            raise AssertionError

        async def all(self) -> Sequence[Token]:
            self.asked += 1
            return ()

        async def remove(self, name: str) -> Token | None:
            raise AssertionError

    counting = Counting()
    tokens = Tokens(counting, FakeClock(), fixed=["right"])
    assert [tokens.recognise(f"guess-{number}") for number in range(1000)] == [None] * 1000
    assert counting.asked == 0
