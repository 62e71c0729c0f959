"""Envoy's admin interface, on a Unix socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

_ANSWER_SECONDS = 2.0
_ANSWER_BYTES = 1 << 20


class EnvoyAdmin:
    """Asks one Envoy about itself; every question raises OSError or TimeoutError while nobody answers.

    Args:
        socket: The admin interface's Unix socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def is_live(self) -> bool:
        """Whether it has read its configuration and listens."""
        status, _ = await self._ask("GET", "/ready")
        return status == 200

    async def has_healthy(self, cluster: str) -> bool:
        """Whether an endpoint of a cluster has passed its health check."""
        _, body = await self._ask("GET", "/clusters?format=json")
        for status in json.loads(body).get("cluster_statuses", ()):
            if status.get("name") == cluster:
                return any(
                    host.get("health_status") == {"eds_health_status": "HEALTHY"}
                    for host in status.get("host_statuses", ())
                )
        return False

    async def drain(self) -> None:
        """Refuses new connections, and closes each open one after the request it serves."""
        await self._ask("POST", "/healthcheck/fail")
        await self._ask("POST", "/drain_listeners")

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
            try:
                request = f"{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                writer.write(request.encode())
                answer = bytearray()
                while data := await reader.read(65536):
                    answer += data
                    if len(answer) > _ANSWER_BYTES:
                        raise OSError("the admin interface's answer has no end")
            finally:
                writer.close()
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise OSError("the admin interface's answer is not HTTP")
        return int(words[1]), _joined(body) if b"\r\ntransfer-encoding: chunked" in head.lower() else body


def _joined(chunked: bytes) -> bytes:
    """The content of a chunked body."""
    content = bytearray()
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size, 16)
        content += rest[:length]
        chunked = rest[length + 2 :] if length else b""
    return bytes(content)
