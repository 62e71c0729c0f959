"""Chat sessions: what was said, kept turn by turn, and one turn at a time.

A session's history is what `Sessions.turn` commits: the user's new messages and the answer, together, once,
on success. A turn that fails or is cancelled leaves no trace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import uuid4

from llamastead_server.domain import names
from llamastead_server.domain.errors import NotFound, Overloaded
from llamastead_server.domain.models.generation import Message
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Clock

MAX_WAITING_TURNS = 16


class SessionStore(Protocol):
    """Keeps the histories; every method is one transaction."""

    async def read(self, ref: ProjectRef, session_id: str, used_since: float) -> Sequence[Message]:
        """The history, oldest first; empty when there is none, or none used since then."""
        ...

    async def append(
        self, ref: ProjectRef, session_id: str, new: Sequence[Message], *, now: float, used_since: float
    ) -> None:
        """Adds messages, and marks the session used now; a history not used since then is dropped first."""
        ...

    async def delete(self, ref: ProjectRef, session_id: str) -> bool:
        """Whether there was such a session."""
        ...

    async def delete_all(self, ref: ProjectRef) -> Sequence[str]:
        """Deletes a project's sessions and gives their ids."""
        ...

    async def delete_unused(self, used_before: float, keep: Collection[tuple[ProjectRef, str]]) -> int:
        """Deletes every session last used before then, but for those to keep, and gives their number."""
        ...


class _Seat:
    """The queue of one session's turns. A revoked seat's turns keep nothing: their session was deleted."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.turns = 0
        self.revoked = False


class SessionTurn:
    """One turn of a session, or a stateless one.

    Attributes:
        session_id: The session's id; None when nothing is kept.
        history: What was said before, oldest first.
    """

    def __init__(self, session_id: str | None, history: Sequence[Message]) -> None:
        self.session_id = session_id
        self.history = history

    def conversation(self, turns: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
        """Joins a request's messages with the history: (what the model sees, what is new to the session).

        A client may send only what is new, or the whole conversation each time as OpenAI's SDKs do:
        - messages that begin with the history repeat it, so only the rest is new;
        - other messages that hold an answer are a conversation of their own, which replaces the history for
          this turn; only what follows their last answer is new;
        - messages without an answer follow the history.
        """
        turns = list(turns)
        known = list(self.history)
        if turns[: len(known)] == known and len(turns) > len(known):
            return turns, turns[len(known) :]
        answers = [place for place, message in enumerate(turns) if message.role == "assistant"]
        if answers:
            return turns, turns[answers[-1] + 1 :]
        return [*known, *turns], turns

    async def commit(self, messages: Sequence[Message]) -> None:
        """Adds the turn's new messages and its answer to the session."""


class _KeptTurn(SessionTurn):
    def __init__(
        self, session_id: str, history: Sequence[Message], append: Callable[[Sequence[Message]], Awaitable[None]]
    ) -> None:
        super().__init__(session_id, history)
        self._append = append

    async def commit(self, messages: Sequence[Message]) -> None:
        await self._append(messages)


class Sessions:
    """The chat sessions of all projects.

    Args:
        store: Where histories are kept.
        ttl: Seconds of inactivity after which a session is forgotten.
        clock: Seconds since the epoch.
    """

    def __init__(self, store: SessionStore, *, ttl: float = 1800.0, clock: Clock = time.time) -> None:
        self._store = store
        self._ttl = ttl
        self._clock = clock
        self._seats: dict[tuple[ProjectRef, str], _Seat] = {}

    @asynccontextmanager
    async def turn(
        self, ref: ProjectRef, session_id: str | None, *, stateless: bool = False
    ) -> AsyncIterator[SessionTurn]:
        """Holds a session for one turn; another turn of the same session waits for this one's end.

        Args:
            ref: The project.
            session_id: Session to continue or to start under this id; `None` starts one under a new id.
            stateless: Whether nothing is read or kept.

        Raises:
            InvalidRequest: The id is not valid.
            Overloaded: Too many turns wait for this session.
        """
        if stateless:
            yield SessionTurn(None, ())
            return
        session_id = str(uuid4()) if session_id is None else names.session_id(session_id)
        key = (ref, session_id)
        seat = self._seats.setdefault(key, _Seat())
        if seat.turns > MAX_WAITING_TURNS:
            raise Overloaded(
                f"{MAX_WAITING_TURNS} turns already wait for session {session_id}; send them one after the other.",
                retry_after=1.0,
            )
        seat.turns += 1
        try:
            async with seat.lock:
                # A session that was alive when its turn began stays so, however long the turn takes.
                used_since = self._oldest()
                history = () if seat.revoked else await self._store.read(ref, session_id, used_since)

                async def append(messages: Sequence[Message]) -> None:
                    if not seat.revoked:
                        await self._store.append(ref, session_id, messages, now=self._clock(), used_since=used_since)

                yield _KeptTurn(session_id, history, append)
        finally:
            seat.turns -= 1
            if seat.turns == 0 and self._seats.get(key) is seat:
                del self._seats[key]

    async def history(self, ref: ProjectRef, session_id: str) -> Sequence[Message]:
        """What was said, oldest first; empty for a session that does not exist (any more)."""
        return await self._store.read(ref, names.session_id(session_id), self._oldest())

    async def delete(self, ref: ProjectRef, session_id: str) -> None:
        """Deletes a session. Its turns that run or wait now still answer, but keep nothing.

        Raises:
            NotFound: There is no such session.
        """
        names.session_id(session_id)
        running = self._revoke(ref, session_id)
        if not await self._store.delete(ref, session_id) and not running:
            raise NotFound(f"Session {session_id} not found in project {ref}.")

    async def delete_all(self, ref: ProjectRef) -> int:
        """Deletes a project's sessions, those of running turns too, and gives their number."""
        running = {session_id for project, session_id in self._seats if project == ref}
        for session_id in running:
            self._revoke(ref, session_id)
        return len(running.union(await self._store.delete_all(ref)))

    async def delete_project(self, ref: ProjectRef) -> None:
        """Deletes a project's sessions because the project is being deleted."""
        await self.delete_all(ref)

    async def sweep(self) -> int:
        """Deletes the sessions that nobody used for the time to live and gives their number."""
        return await self._store.delete_unused(self._oldest(), list(self._seats))

    def _revoke(self, ref: ProjectRef, session_id: str) -> bool:
        # The seat leaves the table, so turns that come later queue on a new one and start afresh.
        seat = self._seats.pop((ref, session_id), None)
        if seat is not None:
            seat.revoked = True
        return seat is not None

    def _oldest(self) -> float:
        return self._clock() - self._ttl
