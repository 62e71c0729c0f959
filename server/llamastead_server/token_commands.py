"""`llamastead tokens`: makes, lists and revokes tokens, beside a running server or without one."""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from llamastead_server.domain.access.rights import ProjectPattern, Scope
from llamastead_server.domain.access.tokens import Token, Tokens
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.settings import Settings

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

T = TypeVar("T")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def add(commands: _Commands) -> None:
    """Adds the commands to the command line."""
    tokens = commands.add_parser("tokens", help="make, list and revoke the tokens that may call the server")
    actions = tokens.add_subparsers(metavar="action", required=True)
    create = actions.add_parser("create", help="make a token and show it, once")
    create.add_argument("--name", required=True, help="what to call it")
    create.add_argument(
        "--scope",
        required=True,
        choices=[str(scope) for scope in Scope],
        help="read: chats, queries and all that only reads; write: changes in projects, too; admin: all",
    )
    create.add_argument("--project", help="restrict it to namespace/project, or to namespace/*")
    create.add_argument("--expires-in", metavar="TIME", help="such as 90d, 12h or 30m; default: never")
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the tokens, without their secrets")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="make a token invalid")
    revoke.add_argument("name", help="the token's name")
    revoke.set_defaults(run=_revoke)


def _create(settings: Settings, options: argparse.Namespace) -> int:
    projects = None if options.project is None else ProjectPattern.parse(options.project)
    lifetime = None if options.expires_in is None else _seconds(options.expires_in)

    async def work(tokens: Tokens) -> str:
        _, secret = await tokens.create(options.name, Scope.parse(options.scope), projects, lifetime)
        return secret

    print(_with_tokens(settings, work))
    return 0


def _list(settings: Settings, options: argparse.Namespace) -> int:
    found = _with_tokens(settings, Tokens.list_tokens)
    rows = [("NAME", "SCOPE", "PROJECT", "CREATED", "EXPIRES"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _revoke(settings: Settings, options: argparse.Namespace) -> int:
    async def work(tokens: Tokens) -> bool:
        await tokens.revoke(options.name)
        return tokens.required

    if not _with_tokens(settings, work):
        print("That was the last token. A running server stays closed; its next start is open, on loopback only.")
    return 0


def _with_tokens(settings: Settings, work: Callable[[Tokens], Awaitable[T]]) -> T:
    # Imported here so that other commands need not wait for it.
    from llamastead_server.adapters.database import Database
    from llamastead_server.adapters.token_store import SqlTokenStore

    async def run() -> T:
        url = settings.database_url
        async with Database(url) if url else Database.in_folder(settings.data_dir) as database:
            return await work(Tokens(SqlTokenStore(database), time.time, fixed=settings.api_tokens))

    return asyncio.run(run())


def _row(token: Token) -> tuple[str, ...]:
    expires = "never" if token.expires_at is None else _date(token.expires_at)
    expired = " (expired)" if token.expired(time.time()) else ""
    return token.name, str(token.scope), str(token.projects or "all"), _date(token.created_at), expires + expired


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhdw]?)", text)
    if found is None:
        raise InvalidRequest(f"Invalid time {text[:50]!r}: write a number and s, m, h, d or w, such as 90d.")
    return float(int(found[1]) * _SECONDS[found[2]])
