from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.session_store import SqlSessionStore
from llamastead_server.domain.chat.sessions import MAX_WAITING_TURNS, Sessions, SessionTurn
from llamastead_server.domain.errors import InvalidRequest, NotFound, Overloaded
from llamastead_server.domain.models.generation import Message
from llamastead_server.domain.names import ProjectRef
from tests.fake_clock import FakeClock

REF = ProjectRef("org", "bot")
OTHER = ProjectRef("org", "other")


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str) -> Message:
    return Message("assistant", text)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def sessions(database_url: str, clock: FakeClock) -> AsyncIterator[Sessions]:
    async with Database(database_url) as database:
        yield Sessions(SqlSessionStore(database), ttl=1800, clock=clock)


async def say(sessions: Sessions, session_id: str | None, text: str, ref: ProjectRef = REF) -> str:
    async with sessions.turn(ref, session_id) as turn:
        await turn.commit([user(text), answer(f"re {text}")])
        assert turn.session_id is not None
        return turn.session_id


async def texts(sessions: Sessions, session_id: str, ref: ProjectRef = REF) -> list[str]:
    return [message.content for message in await sessions.history(ref, session_id)]


async def test_a_new_session_gets_an_id_and_remembers(sessions: Sessions) -> None:
    session_id = await say(sessions, None, "one")
    assert await say(sessions, session_id, "two") == session_id
    assert await texts(sessions, session_id) == ["one", "re one", "two", "re two"]


async def test_histories_of_projects_and_sessions_are_apart(sessions: Sessions) -> None:
    await say(sessions, "s", "one")
    await say(sessions, "s", "other", OTHER)
    await say(sessions, "t", "third")
    assert await texts(sessions, "s") == ["one", "re one"]
    assert await texts(sessions, "s", OTHER) == ["other", "re other"]


async def test_a_turn_without_commit_leaves_nothing(sessions: Sessions) -> None:
    with pytest.raises(ValueError, match="broken"):
        async with sessions.turn(REF, "s"):
            raise ValueError("broken")
    assert await texts(sessions, "s") == []
    with pytest.raises(NotFound):
        await sessions.delete(REF, "s")


async def test_stateless_turns_keep_nothing(sessions: Sessions) -> None:
    await say(sessions, "s", "one")
    async with sessions.turn(REF, "s", stateless=True) as turn:
        assert (turn.session_id, turn.history) == (None, ())
        await turn.commit([user("two")])
    assert await texts(sessions, "s") == ["one", "re one"]


async def test_turns_of_one_session_never_interleave(sessions: Sessions) -> None:
    running = 0

    async def one(number: int) -> None:
        nonlocal running
        async with sessions.turn(REF, "s") as turn:
            running += 1
            assert running == 1
            assert len(turn.history) % 2 == 0
            await asyncio.sleep(0)
            await turn.commit([user(str(number)), answer(f"re {number}")])
            running -= 1

    await asyncio.gather(*(one(number) for number in range(10)))
    said = await texts(sessions, "s")
    assert len(said) == 20
    assert all(later == f"re {earlier}" for earlier, later in zip(said[::2], said[1::2], strict=True))


async def test_other_sessions_do_not_wait(sessions: Sessions) -> None:
    async with sessions.turn(REF, "s"), asyncio.timeout(5):
        await say(sessions, "t", "one")
        await say(sessions, "s", "one", OTHER)


async def test_the_queue_of_a_session_is_bounded_and_drains(sessions: Sessions) -> None:
    async with sessions.turn(REF, "s"):
        waiting = [asyncio.create_task(say(sessions, "s", str(number))) for number in range(MAX_WAITING_TURNS)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await say(sessions, "s", "one more")
        assert refused.value.retry_after
    await asyncio.gather(*waiting)
    assert len(await texts(sessions, "s")) == 2 * MAX_WAITING_TURNS
    assert not sessions._seats


async def test_a_cancelled_waiter_leaves_the_queue(sessions: Sessions) -> None:
    async with sessions.turn(REF, "s"):
        waiting = asyncio.create_task(say(sessions, "s", "one"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert not sessions._seats
    await say(sessions, "s", "two")
    assert await texts(sessions, "s") == ["two", "re two"]


async def test_sessions_expire_by_inactivity(sessions: Sessions, clock: FakeClock) -> None:
    await say(sessions, "s", "one")
    clock.now += 1799
    await say(sessions, "s", "two")
    clock.now += 1800
    assert len(await texts(sessions, "s")) == 4
    clock.now += 1
    assert await texts(sessions, "s") == []
    await say(sessions, "s", "three")
    assert await texts(sessions, "s") == ["three", "re three"]


async def test_the_sweep_removes_expired_sessions_only(sessions: Sessions, clock: FakeClock) -> None:
    await say(sessions, "old", "one")
    clock.now += 1801
    await say(sessions, "new", "two")
    assert await sessions.sweep() == 1
    assert await sessions.sweep() == 0
    assert await texts(sessions, "new") == ["two", "re two"]


async def test_a_session_alive_at_the_start_of_a_long_turn_keeps_its_history(
    sessions: Sessions, clock: FakeClock
) -> None:
    await say(sessions, "s", "one")
    clock.now += 1700
    async with sessions.turn(REF, "s") as turn:
        clock.now += 1000
        assert await sessions.sweep() == 0
        await turn.commit([user("two"), answer("re two")])
    assert await texts(sessions, "s") == ["one", "re one", "two", "re two"]


async def test_deleting_during_a_turn_makes_it_keep_nothing(sessions: Sessions) -> None:
    await say(sessions, "s", "one")
    async with sessions.turn(REF, "s") as turn:
        waiting = asyncio.create_task(say(sessions, "s", "waiting"))
        await asyncio.sleep(0)
        await sessions.delete(REF, "s")
        await say(sessions, "s", "after")
        await turn.commit([user("two"), answer("re two")])
    await waiting
    assert await texts(sessions, "s") == ["after", "re after"]


async def test_deleting_the_first_turn_of_a_session_succeeds(sessions: Sessions) -> None:
    async with sessions.turn(REF, "s") as turn:
        await sessions.delete(REF, "s")
        await turn.commit([user("one"), answer("re one")])
    assert await texts(sessions, "s") == []


async def test_deleting_an_unknown_session_is_not_found(sessions: Sessions) -> None:
    await say(sessions, "s", "one", OTHER)
    with pytest.raises(NotFound, match="s not found in project org/bot"):
        await sessions.delete(REF, "s")


async def test_deleting_all_counts_stored_and_running_sessions_of_the_project(sessions: Sessions) -> None:
    await say(sessions, "a", "one")
    await say(sessions, "b", "one")
    await say(sessions, "c", "one", OTHER)
    async with sessions.turn(REF, "b") as second, sessions.turn(REF, "new") as first:
        assert await sessions.delete_all(REF) == 3
        await second.commit([user("two")])
        await first.commit([user("two")])
    assert await sessions.delete_all(REF) == 0
    assert await texts(sessions, "c", OTHER) == ["one", "re one"]


@pytest.mark.parametrize("session_id", ["", "..", "a/b", "-x", "x" * 129, "a\x00"])
async def test_hostile_ids_are_refused(sessions: Sessions, session_id: str) -> None:
    with pytest.raises(InvalidRequest):
        await say(sessions, session_id, "one")


async def test_histories_survive_a_restart(database_url: str) -> None:
    for number in range(2):
        async with Database(database_url) as database:
            await say(Sessions(SqlSessionStore(database)), "s", str(number))
    async with Database(database_url) as database:
        assert await texts(Sessions(SqlSessionStore(database)), "s") == ["0", "re 0", "1", "re 1"]


H = [user("u1"), answer("a1"), user("u2"), answer("a2")]
ASK = user("u3")


@pytest.mark.parametrize(
    ("history", "turns", "seen", "new"),
    [
        ([], [ASK], [ASK], [ASK]),
        (H, [ASK], [*H, ASK], [ASK]),
        (H, [*H, ASK], [*H, ASK], [ASK]),
        ([], [*H, ASK], [*H, ASK], [*H, ASK]),
        (H, [*H[2:], ASK], [*H[2:], ASK], [ASK]),
        (H, [user("edited"), answer("else"), ASK], [user("edited"), answer("else"), ASK], [ASK]),
        (H, [user("u1")], [*H, user("u1")], [user("u1")]),
        (H, [user("x"), user("y")], [*H, user("x"), user("y")], [user("x"), user("y")]),
    ],
    ids=["first", "next", "full", "full-new", "window", "edited", "repeated-question", "two-questions"],
)
def test_messages_and_history_join_without_duplicates(
    history: list[Message], turns: list[Message], seen: list[Message], new: list[Message]
) -> None:
    assert SessionTurn("s", history).conversation(turns) == (seen, new)
