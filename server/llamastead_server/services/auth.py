"""Bearer tokens: who calls, and whether the contract lets them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from google.protobuf.message import Message

from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.access.tokens import Tokens
from llamastead_server.domain.errors import Unauthenticated
from llamastead_server.services.interceptors import Call
from llamastead_server.services.method_access import access


class BearerAuth:
    """The layer that lets a call pass if its token may make it.

    Every call passes through here, whichever port and protocol it came by; the WebSocket asks `identify` too.

    Args:
        tokens: The tokens that may call; while none is required, every call passes under its address.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Surrounds one call."""
        rules = access(call.method)
        if rules.scope is not None:
            authorization = call.metadata.all("authorization")
            caller = call.principal = self.identify(authorization, call.address)
            rules.demand_scope(caller)
            # A stream that follows the log may outlive its token.
            call.recheck = lambda: self.identify(authorization, call.address)

            async def demand(request: Message, first: bool) -> None:
                rules.demand_project(caller, request, first=first)

            call.checks.append(demand)
        yield

    def identify(self, authorization: Sequence[str], address: str) -> Principal:
        """Tells who calls.

        Args:
            authorization: The values of the header `Authorization`.
            address: Address of the caller.

        Raises:
            Unauthenticated: A token is required and there is none, or it is not one that may call.
        """
        if not self._tokens.required:
            return Principal(f"address:{address}")
        if not authorization:
            raise Unauthenticated("This server needs a token: send the header `Authorization: Bearer <token>`.")
        scheme, _, token = authorization[0].partition(" ")
        if len(authorization) > 1 or scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("The header `Authorization` must be `Bearer <token>`, sent once.")
        known = self._tokens.recognise(token.strip())
        if known is None:
            raise Unauthenticated("The token is not one that this server knows; it may have expired or been revoked.")
        return known
