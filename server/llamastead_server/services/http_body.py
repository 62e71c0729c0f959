"""JSON answers and Server-Sent Events, as `google.api.HttpBody`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from google.api.httpbody_pb2 import HttpBody

from llamastead_server.domain.errors import Internal, LlamasteadError
from llamastead_server.services import errors

_log = logging.getLogger("llamastead.errors")
_EVENTS = "text/event-stream"

DONE = HttpBody(content_type=_EVENTS, data=b"data: [DONE]\n\n")
"""The event that ends an OpenAI stream that went well."""

KEEP_ALIVE = HttpBody(content_type=_EVENTS, data=b": keep-alive\n\n")
"""A comment that shows proxies and clients that the stream lives."""

# Events that may wait for a slow client before their source has to wait too.
_WAITING_EVENTS = 64
# Envoy passes a message on at once while it fits the connection's buffer of 1 MiB.
_MESSAGE_BYTES = 256 * 1024


def json_body(payload: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> HttpBody:
    """A JSON answer."""
    return HttpBody(content_type="application/json", data=_json(payload))


def sse_event(payload: Mapping[str, Any]) -> HttpBody:
    """One Server-Sent Event."""
    return HttpBody(content_type=_EVENTS, data=b"data: " + _json(payload) + b"\n\n")


async def late_errors(
    events: AsyncIterator[HttpBody], path: str | None = None, keep_alive: float = 15.0
) -> AsyncIterator[HttpBody]:
    """Sends Server-Sent Events as they come, several in one message when they come faster than they leave.

    An error before the first event is raised, and becomes an HTTP status. A later one cannot: it ends the stream with
    one event `data: {"error": …}`, after everything that came before it.

    Args:
        events: The events; closed at the end, whatever happens.
        path: Path of the REST request, which decides the error's shape. Default: LlamaFarm's and OpenAI's.
        keep_alive: Seconds of silence after which a comment is sent. None is sent before the first event.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = asyncio.Semaphore(_WAITING_EVENTS)

    async def read() -> None:
        async with aclosing(cast(AsyncGenerator[HttpBody, None], events)) as source:
            async for event in source:
                await room.acquire()
                queue.put_nowait(event.data)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: queue.put_nowait(None))
    started = ended = False
    try:
        while not ended:
            try:
                async with asyncio.timeout(keep_alive if started else None):
                    event = await queue.get()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if event is None:
                break
            room.release()
            data, ended = _joined(event, queue, room)
            started = True
            yield HttpBody(content_type=_EVENTS, data=data)
        failure = None if reader.cancelled() else reader.exception()
        if isinstance(failure, Exception):
            if not started:
                raise failure
            yield _last(errors.expected(failure), path)
        elif reader.cancelled():
            yield _last(Internal("The answer was cut off."), path)
    finally:
        reader.cancel()
        await asyncio.wait([reader])


def _last(error: LlamasteadError, path: str | None) -> HttpBody:
    # The access log can but call such an answer OK: its status was sent before.
    _log.warning("a stream ends with an error: %s", error.message)
    return sse_event({"error": errors.error_object(error, path or "")})


def _joined(first: bytes, queue: asyncio.Queue[bytes | None], room: asyncio.Semaphore) -> tuple[bytes, bool]:
    """Joins `first` and what waits already; tells whether the end was among it."""
    data = bytearray(first)
    while len(data) < _MESSAGE_BYTES and not queue.empty():
        event = queue.get_nowait()
        if event is None:
            return bytes(data), True
        room.release()
        data += event
    return bytes(data), False


def _json(payload: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
