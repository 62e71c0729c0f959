"""TokenService: the tokens that may call."""

from __future__ import annotations

import time

import grpc

from llamastead.v1 import token_pb2 as pb
from llamastead.v1 import token_pb2_grpc as pb_grpc
from llamastead_server.domain.access.rights import ProjectPattern, Scope
from llamastead_server.domain.access.tokens import Token, Tokens
from llamastead_server.domain.ports import Clock
from llamastead_server.services.timestamps import rfc3339


class TokenServicer(pb_grpc.TokenServiceServicer):
    """Tokens over gRPC and, through the gateway, REST."""

    def __init__(self, tokens: Tokens, clock: Clock = time.time) -> None:
        self._tokens = tokens
        self._clock = clock

    async def CreateToken(
        self, request: pb.CreateTokenRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.CreateTokenResponse:
        """Makes a token."""
        token, secret = await self._tokens.create(
            request.name,
            Scope.parse(request.scope),
            ProjectPattern.parse(request.project) if request.HasField("project") else None,
            request.expires_in_seconds if request.HasField("expires_in_seconds") else None,
        )
        return pb.CreateTokenResponse(secret=secret, token=self._message(token))

    async def ListTokens(
        self, request: pb.ListTokensRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListTokensResponse:
        """Lists the tokens."""
        return pb.ListTokensResponse(tokens=map(self._message, await self._tokens.list_tokens()))

    async def RevokeToken(
        self, request: pb.RevokeTokenRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.RevokeTokenResponse:
        """Revokes a token."""
        return pb.RevokeTokenResponse(token=self._message(await self._tokens.revoke(request.token_name)))

    def _message(self, token: Token) -> pb.Token:
        return pb.Token(
            name=token.name,
            scope=str(token.scope),
            project=None if token.projects is None else str(token.projects),
            created_at=rfc3339(token.created_at, "seconds"),
            expires_at=None if token.expires_at is None else rfc3339(token.expires_at, "seconds"),
            expired=token.expired(self._clock()),
        )
