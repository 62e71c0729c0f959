"""Session histories in the SQL database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.schema import messages, sessions
from llamastead_server.domain.models.generation import Message, Role, ToolCall
from llamastead_server.domain.names import ProjectRef


class SqlSessionStore:
    """Implements `domain.sessions.SessionStore`; a session's messages go with it by foreign key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, ref: ProjectRef, session_id: str, used_since: float) -> Sequence[Message]:
        """The history, oldest first; empty when there is none, or none used since then."""

        def work(connection: sa.Connection) -> Sequence[Message]:
            rows = connection.execute(
                sa.select(messages.c.role, messages.c.content, messages.c.extra)
                .join(sessions)
                .where(*_key(sessions, ref), sessions.c.id == session_id, sessions.c.used_at >= used_since)
                .order_by(messages.c.number)
            )
            return [_message(role, content, extra) for role, content, extra in rows]

        return await self._database.read(work)

    async def append(
        self, ref: ProjectRef, session_id: str, new: Sequence[Message], *, now: float, used_since: float
    ) -> None:
        """Adds messages, and marks the session used now; a history not used since then is dropped first."""
        key = {"namespace": ref.namespace, "project": ref.name}

        def work(connection: sa.Connection) -> None:
            mine = (*_key(sessions, ref), sessions.c.id == session_id)
            connection.execute(sessions.delete().where(*mine, sessions.c.used_at < used_since))
            if connection.execute(sessions.update().where(*mine).values(used_at=now)).rowcount == 0:
                connection.execute(sessions.insert().values(**key, id=session_id, used_at=now))
            rows = [
                {
                    **key,
                    "session_id": session_id,
                    "role": message.role,
                    "content": message.content,
                    "extra": _extra(message),
                }
                for message in new
            ]
            if rows:
                connection.execute(messages.insert(), rows)

        await self._database.write(work)

    async def delete(self, ref: ProjectRef, session_id: str) -> bool:
        """Whether there was such a session."""
        gone = sessions.delete().where(*_key(sessions, ref), sessions.c.id == session_id)
        return await self._database.write(lambda connection: connection.execute(gone).rowcount > 0)

    async def delete_all(self, ref: ProjectRef) -> Sequence[str]:
        """Deletes a project's sessions and gives their ids."""

        def work(connection: sa.Connection) -> Sequence[str]:
            found = connection.execute(sa.select(sessions.c.id).where(*_key(sessions, ref))).scalars().all()
            connection.execute(sessions.delete().where(*_key(sessions, ref)))
            return found

        return await self._database.write(work)

    async def delete_unused(self, used_before: float, keep: Collection[tuple[ProjectRef, str]]) -> int:
        """Deletes every session last used before then, but for those to keep, and gives their number."""
        kept = [sa.and_(*_key(sessions, ref), sessions.c.id == session_id) for ref, session_id in keep]
        gone = sessions.delete().where(sessions.c.used_at < used_before, sa.not_(sa.or_(sa.false(), *kept)))
        return await self._database.write(lambda connection: connection.execute(gone).rowcount)


def _extra(message: Message) -> dict[str, Any]:
    """What few messages have, beside role and content."""
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    answered = {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
    return {**({"tool_calls": calls} if calls else {}), **answered}


def _message(role: Role, content: str, extra: Mapping[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in extra.get("tool_calls", ()))
    return Message(role, content, calls, extra.get("tool_call_id"))


def _key(table: sa.Table, ref: ProjectRef) -> tuple[sa.ColumnElement[Any], ...]:
    return (table.c.namespace == ref.namespace, table.c.project == ref.name)
