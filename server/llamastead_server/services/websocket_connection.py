"""One connection of the WebSocket: its frames in, its requests in work, its frames out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing

from pydantic import BaseModel
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from llamastead_server.domain import request_id
from llamastead_server.domain.access.limits import Limits
from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.errors import (
    Conflict,
    LlamasteadError,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from llamastead_server.services import errors, frames
from llamastead_server.services.telemetry import end_user
from llamastead_server.services.websocket_work import WebSocketWork, demand, rules

_log = logging.getLogger("llamastead.access")
_ENDLESS = (frames.TaskWatch, frames.MetricsSubscribe)
"""Requests that only watch: when the server stops, nobody waits for their end."""


class _Gone(Exception):
    """The client is no longer there to send to."""


class Conversation:
    """What goes on on one connection.

    Nothing is queued: a request's next frame is made when its last one has left, so a client that reads slowly slows
    its own requests down; one that does not read at all for too long is cut off, because an engine waits for it.

    Args:
        connection: The connection.
        work: Does what frames ask for.
        limits: The limits of all callers.
        identify: Tells who opened the connection; raises `Unauthenticated` when the token is no longer valid.
        requests: Requests in work at once.
        slow_reader: Seconds a frame may take to leave.
    """

    def __init__(
        self,
        connection: ServerConnection,
        work: WebSocketWork,
        limits: Limits,
        identify: Callable[[], Principal],
        *,
        requests: int,
        slow_reader: float,
    ) -> None:
        self._connection = connection
        self._work = work
        self._limits = limits
        self._identify = identify
        self._most_requests = requests
        self._slow_reader = slow_reader
        self._requests: dict[str, tuple[frames.Work, asyncio.Task[None]]] = {}
        self._sending = asyncio.Lock()
        self._closing: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def active(self) -> int:
        """Requests in work."""
        return len(self._requests)

    async def run(self) -> None:
        """Serves the connection until it is closed; then every request in work is ended."""
        try:
            async for message in self._connection:
                if isinstance(message, bytes):
                    await self._connection.close(1003, "Send text frames.")
                    return
                await self._receive(message)
        except (ConnectionClosed, _Gone):
            pass
        finally:
            running = [task for _, task in self._requests.values()]
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    def recheck(self) -> None:
        """Closes the connection if its token is no longer valid."""
        try:
            self._identify()
        except Unauthenticated:
            self._close(4401, "The token has expired or been revoked.")

    async def finish(self, grace: float) -> None:
        """Takes no more requests and returns when those in work have ended, after `grace` seconds at the latest."""
        self._stopping = True
        for frame, task in list(self._requests.values()):
            if isinstance(frame, _ENDLESS):
                task.cancel()
        if running := [task for _, task in self._requests.values()]:
            await asyncio.wait(running, timeout=grace)

    async def _receive(self, message: str) -> None:
        try:
            frame = frames.read(message)
            if isinstance(frame, frames.Ping):
                await self._send(frames.Pong(id=frame.id))
            elif isinstance(frame, frames.Cancel):
                await self._cancel(frame.id)
            else:
                await self._start(frame)
        except LlamasteadError as error:
            await self._send(_error(frames.id_of(message), error))

    async def _start(self, frame: frames.Work) -> None:
        if frame.id in self._requests:
            raise Conflict(f"A request with the id {frame.id!r} is in work already: choose another id.")
        if len(self._requests) >= self._most_requests:
            raise RateLimited(
                f"{self._most_requests} requests are in work on this connection: wait for one to end, or cancel one.",
                retry_after=1.0,
            )
        if self._stopping:
            raise Unavailable("The server is stopping.", retry_after=2.0)
        task = asyncio.create_task(self._serve(frame), name=f"websocket-{frame.type}")
        self._requests[frame.id] = (frame, task)
        task.add_done_callback(lambda done: self._ended(frame.id, done))

    def _ended(self, frame_id: str, task: asyncio.Task[None]) -> None:
        del self._requests[frame_id]
        if not task.cancelled():
            task.exception()

    async def _cancel(self, frame_id: str) -> None:
        if frame_id not in self._requests:
            raise NotFound(f"No request with the id {frame_id!r} is in work.")
        _, task = self._requests[frame_id]
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            await self._send(frames.Cancelled(id=frame_id))

    async def _serve(self, frame: frames.Work) -> None:
        """Serves one request, from its checks to its last frame."""
        request_id.REQUEST_ID.set(request_id.adopt(None))
        began = time.monotonic()
        status, caller, last = "CANCELLED", None, None
        try:
            caller = self._identify()
            demand(caller, frame)
            await self._limits.count(caller, batch=rules(frame).batch)
            async with AsyncExitStack() as streams:
                if rules(frame).streams == "always":
                    await streams.enter_async_context(self._limits.stream(caller))
                async with aclosing(self._work.answer(frame)) as stream:
                    async for answer in stream:
                        if isinstance(answer, frames.Done):
                            last = answer
                        else:
                            await self._send(answer)
            # Who has read it finds the id, the stream and the engine free.
            if last is not None:
                await self._send(last)
            status = "OK"
        except _Gone:
            pass
        except Exception as raised:
            error = errors.expected(raised)
            status = errors.rendering(error).code.name
            await self._send(_error(frame.id, error))
        finally:
            _write(frame, caller, status, time.monotonic() - began)

    async def _send(self, frame: BaseModel) -> None:
        text = frames.write(frame)
        try:
            async with asyncio.timeout(self._slow_reader), self._sending:
                await self._connection.send(text)
        except TimeoutError:
            self._close(1008, "The client reads too slowly.")
            raise _Gone from None
        except ConnectionClosed:
            raise _Gone from None

    def _close(self, code: int, reason: str) -> None:
        # In a task of its own: closing waits for the client.
        if self._closing is None:
            self._closing = asyncio.create_task(self._connection.close(code, reason))


def _error(frame_id: str | None, error: LlamasteadError) -> frames.Error:
    return frames.Error(id=frame_id, error=errors.error_object(error, ""), retry_after=error.retry_after)


def _write(frame: frames.Work, caller: Principal | None, status: str, duration: float) -> None:
    fields = {
        "method": frame.type,
        "path": "/v1/ws",
        "status": status,
        "duration_ms": round(duration * 1000, 1),
        "caller": caller.id if caller else None,
        "user": end_user(frame.request.get("user")) if isinstance(frame, frames.Chat) else None,
    }
    shown = {name: value for name, value in fields.items() if value is not None}
    _log.info("WebSocket %s %s %.1f ms", frame.type, status, duration * 1000, extra={"fields": shown})
