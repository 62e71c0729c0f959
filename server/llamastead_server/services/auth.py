"""Bearer tokens."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from llamastead_server.domain.errors import Unauthenticated
from llamastead_server.services.interceptors import Call, Principal
from llamastead_server.services.metadata import CallMetadata

OPEN_METHODS = frozenset(f"/llamastead.v1.SystemService/{method}" for method in ("GetRoot", "GetHealth", "GetLiveness"))
"""Methods that need no token: they say that the server lives, and nothing about the machine it runs on."""


class BearerAuth:
    """The layer that lets a call pass with one of the configured tokens.

    Only hashes of the tokens are kept, and each offered token is compared with all of them in constant time.

    Args:
        tokens: Tokens that may call; without any, every call passes as `anonymous`.
        open_methods: Full names of methods that need no token.
    """

    def __init__(self, tokens: Sequence[str], open_methods: frozenset[str] = OPEN_METHODS) -> None:
        self._hashes = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)
        self._open_methods = open_methods

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Surrounds one call."""
        if self._hashes and call.method not in self._open_methods:
            call.principal = self.authenticate(call.metadata)
        yield

    def authenticate(self, metadata: CallMetadata) -> Principal:
        """Tells who sent the metadata.

        Raises:
            Unauthenticated: There is no token in it, or a wrong one.
        """
        values = metadata.all("authorization")
        if not values:
            raise Unauthenticated("This server needs a token: send the header `Authorization: Bearer <token>`.")
        scheme, _, token = values[0].partition(" ")
        if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("The header `Authorization` must be `Bearer <token>`, sent once.")
        offered = hashlib.sha256(token.strip().encode()).digest()
        matches = [hmac.compare_digest(offered, known) for known in self._hashes]
        if not any(matches):
            raise Unauthenticated("The token is not one that this server knows.")
        return Principal(f"token-{offered.hex()[:8]}")
