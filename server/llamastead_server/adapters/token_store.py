"""Tokens' hashes in the SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.schema import tokens
from llamastead_server.domain.access.rights import ProjectPattern, Scope
from llamastead_server.domain.access.tokens import Token


class SqlTokenStore:
    """Implements `domain.tokens.TokenStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, token: Token) -> bool:
        """Adds a token; false when the name is taken."""
        row = {
            "name": token.name,
            "digest": token.digest,
            "scope": str(token.scope),
            "projects": None if token.projects is None else str(token.projects),
            "created_at": token.created_at,
            "expires_at": token.expires_at,
        }
        try:
            await self._database.write(lambda connection: connection.execute(tokens.insert().values(row)))
        except sa.exc.IntegrityError:
            return False
        return True

    async def all(self) -> Sequence[Token]:
        """Every token, sorted by name."""
        found = sa.select(tokens).order_by(tokens.c.name)
        return await self._database.read(lambda connection: [_token(row) for row in connection.execute(found)])

    async def remove(self, name: str) -> Token | None:
        """Removes a token and gives it as it was."""

        def work(connection: sa.Connection) -> Token | None:
            row = connection.execute(sa.select(tokens).where(tokens.c.name == name)).first()
            connection.execute(tokens.delete().where(tokens.c.name == name))
            return None if row is None else _token(row)

        return await self._database.write(work)


def _token(row: sa.Row[Any]) -> Token:
    projects = None if row.projects is None else ProjectPattern.parse(row.projects)
    return Token(row.name, row.digest, Scope.parse(row.scope), projects, row.created_at, row.expires_at)
