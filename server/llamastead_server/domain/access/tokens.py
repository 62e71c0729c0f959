"""Bearer tokens: made here, kept as hashes, recognised in constant time.

A token is 256 random bits, so one round of SHA-256 hides it: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamastead_server.domain import names
from llamastead_server.domain.access.rights import Principal, ProjectPattern, Scope
from llamastead_server.domain.errors import AlreadyExists, InvalidRequest, NotFound
from llamastead_server.domain.ports import Clock

_PREFIX = "lst_"
_LONGEST_LIFE = 100 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept.

    Attributes:
        name: Its name, unique.
        digest: SHA-256 of the token, in hex.
        scope: What it may do.
        projects: The projects it may be used for; None: all.
        created_at: Seconds since the epoch.
        expires_at: Seconds since the epoch; None: never.
    """

    name: str
    digest: str
    scope: Scope
    projects: ProjectPattern | None
    created_at: float
    expires_at: float | None = None

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and now >= self.expires_at


class TokenStore(Protocol):
    """Keeps tokens; every method is one transaction."""

    async def add(self, token: Token) -> bool:
        """Adds a token; false when the name is taken."""
        ...

    async def all(self) -> Sequence[Token]:
        """Every token, sorted by name."""
        ...

    async def remove(self, name: str) -> Token | None:
        """Removes a token and gives it as it was."""
        ...


class Tokens:
    """The tokens that may call.

    They are held in memory and brought up to date by `refresh`, so recognising one asks no database.

    Args:
        store: Where created tokens are kept.
        clock: Seconds since the epoch.
        fixed: Tokens from the settings, as they are sent; they hold the scope `admin`.
        exposed: Whether others can reach this server, which then is never open.
    """

    def __init__(self, store: TokenStore, clock: Clock, *, fixed: Sequence[str] = (), exposed: bool = False) -> None:
        self._store = store
        self._clock = clock
        self._fixed: Mapping[bytes, Principal] = {
            digest: Principal(f"token-{digest.hex()[:8]}", has_token=True) for digest in map(_digest, fixed)
        }
        self._kept: Mapping[bytes, Token] = {}
        self._required = exposed or bool(self._fixed)
        self._refreshing = asyncio.Lock()

    @property
    def required(self) -> bool:
        """Whether calls need a token.

        Once they do, they do so until the end of this process: revoking the last token must not open the server.
        """
        return self._required

    @property
    def usable(self) -> bool:
        """Whether there is a token that may call now."""
        now = self._clock()
        return bool(self._fixed) or any(not token.expired(now) for token in self._kept.values())

    def recognise(self, secret: str) -> Principal | None:
        """Tells whose token this is; None for one that is unknown, revoked or expired.

        The offered token's hash is compared with every known one, each in constant time.
        """
        offered = _digest(secret)
        fixed = [who for known, who in self._fixed.items() if hmac.compare_digest(offered, known)]
        kept = [token for known, token in self._kept.items() if hmac.compare_digest(offered, known)]
        if fixed:
            return fixed[0]
        if kept and not kept[0].expired(self._clock()):
            token = kept[0]
            return Principal(f"token:{token.name}", token.scope, token.projects, has_token=True)
        return None

    async def refresh(self) -> None:
        """Takes over what was created and revoked elsewhere, such as on the command line."""
        # One at a time: what was read before a token was revoked must not be taken over after that.
        async with self._refreshing:
            self._kept = {bytes.fromhex(token.digest): token for token in await self._store.all()}
            self._required = self._required or bool(self._kept)

    async def create(
        self, name: str, scope: Scope, projects: ProjectPattern | None = None, lifetime: float | None = None
    ) -> tuple[Token, str]:
        """Makes a token; returns it and the secret, which is kept nowhere.

        Raises:
            InvalidRequest: The name is not valid, or the token could do nothing.
            AlreadyExists: The name is taken.
        """
        names.segment("token", name)
        if scope is Scope.ADMIN and projects is not None:
            raise InvalidRequest(
                "A token of scope admin can't be restricted to a project: what needs admin concerns the whole server.",
                details={"field": "project"},
            )
        if lifetime is not None and not 1 <= lifetime <= _LONGEST_LIFE:
            raise InvalidRequest(
                "A token lives for at least a second and at most 100 years.", details={"field": "expires_in_seconds"}
            )
        secret = _PREFIX + secrets.token_urlsafe(32)
        now = self._clock()
        expires_at = None if lifetime is None else now + lifetime
        token = Token(name, _digest(secret).hex(), scope, projects, now, expires_at)
        if not await self._store.add(token):
            raise AlreadyExists(f"There is a token named {name!r} already: revoke it first, or choose another name.")
        await self.refresh()
        return token, secret

    async def list_tokens(self) -> Sequence[Token]:
        """Every created token, sorted by name; expired ones too."""
        return await self._store.all()

    async def revoke(self, name: str) -> Token:
        """Removes a token, which from now on is nobody's.

        Raises:
            NotFound: There is no such token.
        """
        removed = await self._store.remove(names.segment("token", name))
        if removed is None:
            raise NotFound(f"There is no token named {name!r}.")
        await self.refresh()
        return removed


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
