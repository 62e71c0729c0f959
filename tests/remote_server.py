"""An OpenAI-compatible server in the test's own process: what it answers is what a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any


class RemoteServer:
    """Answers every request alike, and remembers what it was asked.

    Attributes:
        chunks: The events of its answer; `[DONE]` follows.
        status: Status of its answer; other than 200, `error` is the body.
        pause: Seconds before each event.
        kind: Content type of an answer of status 200.
        cut: Whether it closes the connection instead of sending `[DONE]`.
        asked: Path, headers and body of each request.
        left: Set when a client closed the connection before the answer's end.
    """

    def __init__(self) -> None:
        self.chunks: Sequence[Any] = [said("Hello"), said(" there."), ended("stop"), USAGE]
        self.status = 200
        self.error: Any = {"error": {"message": "no"}}
        self.headers: dict[str, str] = {}
        self.pause = 0.0
        self.kind = "text/event-stream"
        self.cut = False
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.left = asyncio.Event()
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"http://{self.host}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"null")
            self.asked.append((head[0].split(" ")[1], headers, body))
            await self._answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        if self.status != 200:
            body = json.dumps(self.error).encode()
            writer.write(f"HTTP/1.1 {self.status} X\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return
        writer.write(f"HTTP/1.1 200 OK\r\n{more}Content-Type: {self.kind}\r\nConnection: close\r\n\r\n".encode())
        for chunk in [*self.chunks, *([] if self.cut else ["[DONE]"])]:
            await asyncio.sleep(self.pause)
            text = chunk if isinstance(chunk, str) else json.dumps(chunk)
            writer.write(f"data: {text}\n\n".encode())
            await writer.drain()


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **more}]}


def called(index: int, **function: Any) -> dict[str, Any]:
    call_id = {"id": f"c{index}", "type": "function"} if "name" in function else {}
    return {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, **call_id, "function": function}]}}]}


def ended(reason: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


USAGE: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}}


@asynccontextmanager
async def remote_server() -> AsyncIterator[RemoteServer]:
    remote = RemoteServer()
    server = await asyncio.start_server(remote.serve, "127.0.0.1", 0)
    remote.port = server.sockets[0].getsockname()[1]
    async with server:
        yield remote
        server.close()
