"""JSON answers and server-sent events, as `google.api.HttpBody`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from google.api import httpbody_pb2

from llamastead_server.services import errors

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment that shows proxies and clients that the stream lives."""

# Events that may wait for a slow client before the source has to wait too.
_WAITING_EVENTS = 64
# Envoy passes on a message at once while it fits the connection's buffer of 1 MiB.
_MESSAGE_BYTES = 256 * 1024


def json_body(payload: Mapping[str, Any]) -> httpbody_pb2.HttpBody:
    """A JSON answer."""
    return httpbody_pb2.HttpBody(content_type="application/json", data=_json(payload))


def sse_event(payload: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + _json(payload) + b"\n\n"


def sse_done() -> bytes:
    """The event that ends an OpenAI stream that went well."""
    return b"data: [DONE]\n\n"


async def event_stream(
    events: AsyncIterator[bytes], path: str | None, keep_alive: float = 15.0
) -> AsyncIterator[httpbody_pb2.HttpBody]:
    """Sends server-sent events as they come, several in one message when they come faster than they leave.

    An error before the first event is raised, and becomes a status of its own. A later one cannot: it ends the stream
    with one event `data: {"error": …}`, after everything that came before it.

    Args:
        events: The events; closed at the end, whatever happens.
        path: Path of the REST request, which decides the error's shape.
        keep_alive: Seconds of silence after which a comment is sent. None is sent before the first event.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(_WAITING_EVENTS)
    failures: list[Exception] = []

    async def read() -> None:
        try:
            async with _closing(events) as source:
                async for event in source:
                    await queue.put(event)
        except Exception as error:
            failures.append(error)
        await queue.put(None)

    reader = asyncio.create_task(read())
    try:
        first = await queue.get()
        if first is None and failures:
            raise failures[0]
        message = first
        while message is not None:
            data, ended = _ready(message, queue)
            yield _sse(data)
            message = None if ended else await _next(queue, keep_alive)
        if failures:
            error = errors.expected(failures[0])
            yield _sse(sse_event({"error": errors.error_object(error, path or "")}))
    finally:
        reader.cancel()
        await asyncio.wait([reader])


def _ready(first: bytes, queue: asyncio.Queue[bytes | None]) -> tuple[bytes, bool]:
    """Joins `first` and what else waits already; tells whether the end was among it."""
    data = bytearray(first)
    while len(data) < _MESSAGE_BYTES and not queue.empty():
        event = queue.get_nowait()
        if event is None:
            return bytes(data), True
        data += event
    return bytes(data), False


async def _next(queue: asyncio.Queue[bytes | None], keep_alive: float) -> bytes | None:
    try:
        async with asyncio.timeout(keep_alive):
            return await queue.get()
    except TimeoutError:
        return KEEP_ALIVE


def _closing(events: AsyncIterator[bytes]) -> aclosing[Any]:
    return aclosing(events)  # type: ignore[type-var]


def _sse(data: bytes) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type="text/event-stream", data=data)


def _json(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
