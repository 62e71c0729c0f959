"""The WebSocket `/v1/ws`: JSON frames, several requests at once on one connection.

It listens on a unix socket that only the gateway reaches, which has checked host and origin. Frames are described in
`frames`, and done by `websocket_work`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, unix_serve
from websockets.typing import Subprotocol

from llamastead_server.domain.access.limits import LimitReached, Limits
from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.errors import Unauthenticated
from llamastead_server.services.auth import BearerAuth
from llamastead_server.services.metadata import CLIENT_ADDRESS
from llamastead_server.services.websocket_connection import Conversation
from llamastead_server.services.websocket_work import WebSocketWork

_log = logging.getLogger("llamastead.websocket")
_library_log = logging.getLogger("llamastead.websocket.library")
# The library tells of every handshake that a client breaks off, with a traceback, and at DEBUG of every header, tokens
# included.
_library_log.setLevel(logging.CRITICAL)

SUBPROTOCOL = Subprotocol("llamastead.v1")
"""What browsers offer beside `bearer.<token>`, so that the answer need not repeat the token."""
_BEARER = "bearer."
_RECHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WebSocketBounds:
    """Bounds of the WebSocket; times in seconds.

    Attributes:
        message_bytes: Largest message taken.
        connections: Connections at once.
        requests: Requests in work at once on one connection.
        slow_reader: Longest time the client may leave a frame unread while the buffers are full.
        ping: Time between two pings, and longest time until each is answered.
    """

    message_bytes: int = 4 << 20
    connections: int = 1000
    requests: int = 16
    slow_reader: float = 20.0
    ping: float = 20.0


class WebSocketServer:
    """The running server.

    Args:
        work: Does what frames ask for.
        auth: Tells who calls.
        limits: The limits of all callers.
        bounds: Bounds of sizes, numbers and times.
    """

    def __init__(
        self, work: WebSocketWork, auth: BearerAuth, limits: Limits, bounds: WebSocketBounds | None = None
    ) -> None:
        self._work = work
        self._auth = auth
        self._limits = limits
        self._bounds = bounds or WebSocketBounds()
        self._open: set[Conversation] = set()
        self._server: Server | None = None
        self._rechecking: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def active(self) -> int:
        """Requests in work."""
        return sum(conversation.active for conversation in self._open)

    async def start(self, socket: Path) -> None:
        """Begins to listen on a unix socket."""
        bounds = self._bounds
        self._server = await unix_serve(
            self._serve,
            path=str(socket),
            select_subprotocol=_subprotocol,
            compression=None,
            server_header=None,
            max_size=bounds.message_bytes,
            ping_interval=bounds.ping,
            ping_timeout=bounds.ping,
            close_timeout=2.0,
            logger=_library_log,
        )
        self._rechecking = asyncio.create_task(self._recheck(), name="websocket-tokens")

    async def stop(self, grace: float) -> None:
        """Takes no more requests, gives those in work `grace` seconds, then closes every connection with 1001."""
        self._stopping = True
        if self._rechecking is not None:
            self._rechecking.cancel()
            await asyncio.wait([self._rechecking])
        if self._open:
            await asyncio.wait([asyncio.create_task(each.finish(grace)) for each in self._open])
        if self._server is not None:
            self._server.close(code=1001, reason="The server stops.")
            await self._server.wait_closed()

    async def _serve(self, connection: ServerConnection) -> None:
        try:
            caller = self._identify(connection)
            await self._limits.count(caller)
        except Unauthenticated as error:
            await connection.close(4401, _reason(error.message))
            return
        except LimitReached as error:
            await connection.close(4429, _reason(error.message))
            return
        if self._stopping or len(self._open) >= self._bounds.connections:
            await connection.close(1001 if self._stopping else 1013, "Try again later.")
            return
        conversation = Conversation(
            connection,
            self._work,
            self._limits,
            lambda: self._identify(connection),
            requests=self._bounds.requests,
            slow_reader=self._bounds.slow_reader,
        )
        self._open.add(conversation)
        _log.info("%s opened a WebSocket", caller.id)
        try:
            await conversation.run()
        except Exception:
            _log.exception("a WebSocket failed")
            await connection.close(1011)
        finally:
            self._open.discard(conversation)
            _log.info("the WebSocket of %s is closed", caller.id)

    async def _recheck(self) -> None:
        """Closes connections whose token has expired or been revoked."""
        while True:
            await asyncio.sleep(_RECHECK_SECONDS)
            for conversation in list(self._open):
                conversation.recheck()

    def _identify(self, connection: ServerConnection) -> Principal:
        request = connection.request
        assert request is not None
        address = request.headers.get_all(CLIENT_ADDRESS)
        return self._auth.identify(_authorization(connection), address[0] if address else "unknown")


def _authorization(connection: ServerConnection) -> Sequence[str]:
    """The header `Authorization`; browsers, which can't set it, name the token in the query or as a subprotocol."""
    request = connection.request
    assert request is not None
    if values := request.headers.get_all("Authorization"):
        return values
    query = parse_qs(urlsplit(request.path).query).get("token", [])
    offered = [
        name.strip().removeprefix(_BEARER)
        for value in request.headers.get_all("Sec-WebSocket-Protocol")
        for name in value.split(",")
        if name.strip().startswith(_BEARER)
    ]
    return [f"Bearer {token}" for token in (*query, *offered)]


def _subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    # A browser that offers protocols drops the connection when none of them is taken.
    return next((name for name in (SUBPROTOCOL, *offered) if name in offered), None)


def _reason(message: str) -> str:
    """A close reason, which may have 123 bytes."""
    return message.encode()[:120].decode(errors="ignore")
