"""JSON answers and Server-Sent Events, as `google.api.HttpBody`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.api.httpbody_pb2 import HttpBody

from llamastead_server.domain.errors import Internal, LlamasteadError
from llamastead_server.services import errors
from llamastead_server.services.metadata import CallMetadata

_log = logging.getLogger("llamastead.errors")


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How JSON objects follow each other in a stream.

    Args:
        content_type: Its media type.
        before: What stands before an object.
        after: What stands after it.
        end: What ends a stream that went well; empty: nothing.
        sign_of_life: What shows proxies and clients that the stream lives; empty: nothing does.
    """

    content_type: str
    before: bytes
    after: bytes
    end: bytes = b""
    sign_of_life: bytes = b""

    def body(self, data: bytes) -> HttpBody:
        """Bytes of the stream."""
        return HttpBody(content_type=self.content_type, data=data)

    def event(self, payload: Mapping[str, Any]) -> HttpBody:
        """One object."""
        return self.body(self.before + _json(payload) + self.after)


EVENTS = StreamForm("text/event-stream", b"data: ", b"\n\n", b"data: [DONE]\n\n", b": keep-alive\n\n")
"""Server-Sent Events."""

LINES = StreamForm("application/x-ndjson", b"", b"\n")
"""One object a line."""

DONE = EVENTS.body(EVENTS.end)
"""The event that ends an OpenAI stream that went well."""

KEEP_ALIVE = EVENTS.body(EVENTS.sign_of_life)
"""A comment that shows proxies and clients that the stream lives."""

STREAM_HEADERS = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
"""Headers of a stream: the second asks proxies in front of the gateway to pass events on as they come."""

# Events that may wait for a slow client before their source has to wait too.
_WAITING_EVENTS = 64
# Envoy passes a message on at once while it fits the connection's buffer of 1 MiB.
_MESSAGE_BYTES = 256 * 1024


def json_body(payload: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> HttpBody:
    """A JSON answer."""
    return HttpBody(content_type="application/json", data=_json(payload))


def sse_event(payload: Mapping[str, Any]) -> HttpBody:
    """One Server-Sent Event."""
    return EVENTS.event(payload)


def wanted_form(metadata: CallMetadata) -> StreamForm:
    """Lines where the request accepts them by name, else events."""
    accepted = ",".join(metadata.all("accept")).lower()
    return LINES if LINES.content_type in accepted else EVENTS


async def late_errors(
    events: AsyncGenerator[HttpBody, None], path: str | None = None, keep_alive: float = 15.0, form: StreamForm = EVENTS
) -> AsyncGenerator[HttpBody, None]:
    """Sends events as they come, several in one message when they come faster than they leave.

    An error before the first event is raised, and becomes an HTTP status. A later one cannot: it ends the stream with
    one event `data: {"error": …}`, after everything that came before it.

    Args:
        events: The events; closed at the end, whatever happens.
        path: Path of the REST request, which decides the error's shape. Default: LlamaFarm's and OpenAI's.
        keep_alive: Seconds of silence after which a sign of life is sent. None is sent before the first event.
        form: The stream's form.
    """
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = asyncio.Semaphore(_WAITING_EVENTS)

    async def read() -> None:
        async with aclosing(events) as source:
            async for event in source:
                await room.acquire()
                queue.put_nowait(event.data)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: queue.put_nowait(None))
    started = ended = False
    try:
        while not ended:
            try:
                async with asyncio.timeout(keep_alive if started and form.sign_of_life else None):
                    event = await queue.get()
            except TimeoutError:
                yield form.body(form.sign_of_life)
                continue
            if event is None:
                break
            room.release()
            data, ended = _joined(event, queue, room)
            started = True
            yield form.body(data)
        failure = None if reader.cancelled() else reader.exception()
        if isinstance(failure, Exception):
            if not started:
                raise failure
            yield _last(form, errors.expected(failure), path)
        elif reader.cancelled():
            yield _last(form, Internal("The answer was cut off."), path)
    finally:
        reader.cancel()
        await asyncio.wait([reader])


def _last(form: StreamForm, error: LlamasteadError, path: str | None) -> HttpBody:
    # The access log can but call such an answer OK: its status was sent before.
    _log.warning("a stream ends with an error: %s", error.message)
    return form.event({"error": errors.error_object(error, path or "")})


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
