"""A client for llama.cpp's own server, which listens on a unix socket inside the worker's private folder.

HTTP is the one road by which llama.cpp notices that a reader went away while it still processes the prompt:
with `return_progress` it writes after every batch, and a write to a closed socket frees the slot.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_READ_SIZE = 256 << 10


class LlamaServerError(Exception):
    """llama.cpp answered with an error.

    Args:
        status: Its HTTP status; 400 means that the request is at fault.
        message: Its message.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class LlamaHttp:
    """Speaks to the server behind `socket` with its key; each call has its own connection."""

    def __init__(self, socket: Path, key: str) -> None:
        self._socket = str(socket)
        self._key = key

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Sends one request and returns the JSON answer.

        Raises:
            LlamaServerError: The answer is an error.
        """
        async with self._request(method, path, body) as reader:
            status, headers = await _read_head(reader)
            raw = await reader.readexactly(int(headers.get("content-length", "0")))
            answer = json.loads(raw)
            if status != 200:
                raise _error(status, answer)
            return answer

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Sends one request and yields the events of the answer, all that are ready at a time.

        Raises:
            LlamaServerError: The answer is an error, or an error ended it.
        """
        async with self._request("POST", path, body) as reader:
            status, headers = await _read_head(reader)
            if status != 200:
                raise _error(status, json.loads(await reader.readexactly(int(headers.get("content-length", "0")))))
            chunks = ChunkDecoder()
            pending = b""
            while not chunks.ended:
                data = await reader.read(_READ_SIZE)
                if not data:
                    raise LlamaServerError(502, "llama.cpp closed the connection before the answer's end")
                *blocks, pending = (pending + chunks.feed(data)).split(b"\n\n")
                events = [_event(block) for block in blocks if not block.startswith(b":") and block.strip()]
                ready = [event for event in events if event is not None]
                if ready:
                    yield ready

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[asyncio.StreamReader]:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=_READ_SIZE)
        try:
            payload = b"" if body is None else json.dumps(body).encode()
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: llama\r\nConnection: close\r\nAuthorization: Bearer {self._key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
            )
            writer.write(head.encode() + payload)
            await writer.drain()
            yield reader
        finally:
            writer.close()


class ChunkDecoder:
    """Takes HTTP/1.1 chunked transfer coding off a body that arrives in arbitrary pieces."""

    def __init__(self) -> None:
        self._pending = b""
        self._left = 0
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Returns the body bytes that `data` completes."""
        data = self._pending + data
        self._pending = b""
        body = []
        at = 0
        while at < len(data):
            if self._left:
                taken = data[at : at + self._left]
                body.append(taken)
                at += len(taken)
                self._left -= len(taken)
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._pending = data[at:]
                break
            line = data[at:line_end]
            at = line_end + 2
            if line:
                self._left = int(line.split(b";")[0], 16)
                if self._left == 0:
                    self.ended = True
                    break
        return b"".join(body)


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        raise LlamaServerError(502, "llama.cpp closed the connection without an answer") from None
    status_line, *lines = head.decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status_line.split(" ", 2)[1]), headers


def _event(block: bytes) -> dict[str, Any] | None:
    kind, _, payload = block.strip().partition(b": ")
    if payload == b"[DONE]":
        return None
    event: dict[str, Any] = json.loads(payload)
    if kind == b"error" or "error" in event:
        raise _error(500, event)
    return event


def _error(status: int, answer: Any) -> LlamaServerError:
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    return LlamaServerError(int(error.get("code", status)), str(error.get("message", "llama.cpp failed")))
