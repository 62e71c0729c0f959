"""A lean HTTP/1.1 client: on two cores, what the client burns is taken from the server it measures."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

_READ_SIZE = 64 << 10


class HttpFailed(Exception):
    """The server answered with a status that is not 2xx."""


class HttpConnection:
    """One keep-alive connection, for one thread; use it as a context manager."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host = f"{host}:{port}"
        self._socket = socket.create_connection((host, port), timeout=600)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request_bytes(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> bytes:
        """A request ready to be sent, so that a loop need not build it again."""
        fields = {"Host": self._host, "Content-Length": str(len(body)), "Content-Type": "application/json"}
        lines = [f"{name}: {value}" for name, value in (fields | dict(headers or {})).items()]
        return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body

    def send(self, request: bytes) -> bytes:
        """Sends a request made by `request_bytes` and returns the answer's body.

        Raises:
            HttpFailed: The status is not 2xx.
        """
        return b"".join(piece for _, piece in self.stream(request))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Sends JSON and returns the JSON answer."""
        return json.loads(
            self.send(self.request_bytes(method, path, b"" if body is None else json.dumps(body).encode()))
        )

    def stream(self, request: bytes) -> Iterator[tuple[float, bytes]]:
        """Sends a request and yields the pieces of the answer's body, each with the time when it came."""
        self._socket.sendall(request)
        status, headers = self._head()
        pieces = self._chunks() if headers.get("transfer-encoding") == "chunked" else self._sized(headers)
        if not 200 <= status < 300:
            raise HttpFailed(f"HTTP {status}: {b''.join(piece for _, piece in pieces).decode(errors='replace')}")
        yield from pieces

    def _head(self) -> tuple[int, dict[str, str]]:
        while b"\r\n\r\n" not in self._pending:
            self._more()
        head, _, self._pending = self._pending.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split(" ", 2)[1]), headers

    def _sized(self, headers: Mapping[str, str]) -> Iterator[tuple[float, bytes]]:
        length = int(headers.get("content-length", "0"))
        while len(self._pending) < length:
            self._more()
        body, self._pending = self._pending[:length], self._pending[length:]
        yield time.perf_counter(), body

    def _chunks(self) -> Iterator[tuple[float, bytes]]:
        while True:
            while b"\r\n" not in self._pending:
                self._more()
            size, _, rest = self._pending.partition(b"\r\n")
            length = int(size.split(b";")[0], 16)
            self._pending = rest
            while len(self._pending) < length + 2:
                self._more()
            piece, self._pending = self._pending[:length], self._pending[length + 2 :]
            if not length:
                return
            yield time.perf_counter(), piece

    def _more(self) -> None:
        data = self._socket.recv(_READ_SIZE)
        if not data:
            raise HttpFailed("the server closed the connection")
        self._pending += data
