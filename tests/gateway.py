"""The real gateway before a real gRPC server, with servicers a test controls and no engine behind them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from llamastead_server.adapters.envoy import EnvoyGateway, GatewayOptions
from llamastead_server.services import server
from tests.running_server import free_port


@dataclass
class Running:
    """A gateway with its server."""

    gateway: EnvoyGateway
    server: server.GrpcServer
    port: int
    grpc_port: int
    http: httpx.AsyncClient

    @property
    def addresses(self) -> tuple[str, str]:
        """The gateway's address and the bare gRPC port's."""
        return f"127.0.0.1:{self.port}", f"127.0.0.1:{self.grpc_port}"


@contextlib.asynccontextmanager
async def running(
    servicers: Sequence[object] = (), *, tokens: Sequence[str] = (), **options: Any
) -> AsyncIterator[Running]:
    """Starts both for one block."""
    port, grpc_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        socket = folder / "server.sock"
        grpc_server = server.build(servicers, host="127.0.0.1", grpc_port=grpc_port, socket=socket, tokens=tokens)
        gateway = EnvoyGateway(GatewayOptions("127.0.0.1", port, socket, folder, **options))
        try:
            await grpc_server.start()
            await grpc_server.set_serving(True)
            await gateway.start()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                yield Running(gateway, grpc_server, port, grpc_port, http)
        finally:
            await gateway.stop()
            await grpc_server.stop(0)
