"""The server under test, started for one benchmark as a user would start it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.http_client import HttpConnection
from benchmarks.processes import Process, family
from tests.running_server import RunningServer, running

NAMESPACE = "bench"


class Stack:
    """A running server with its processes."""

    def __init__(self, server: RunningServer) -> None:
        assert server.process is not None
        self.port = server.port
        self.bare_grpc, self.gateway_grpc = server.grpc_addresses[1], server.grpc_addresses[0]
        self._server = server
        self._pid = server.process.pid

    def processes(self) -> Mapping[str, Process]:
        """What runs now, by role."""
        return family(self._pid, self._server.descendants())

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One REST call on a connection of its own."""
        with HttpConnection(self.port) as connection:
            return connection.ask(method, path, body)

    def make_project(self, name: str, template: str = "default") -> str:
        """Makes a project in the namespace `bench`; returns its path."""
        self.ask("POST", f"/v1/projects/{NAMESPACE}", {"name": name, "config_template": template})
        return f"/v1/projects/{NAMESPACE}/{name}"


@contextlib.contextmanager
def running_stack(settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """A server on free ports with a data folder of its own, both gone at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="llamastead-bench-") as folder,
        running(Path(folder), settings=settings) as server,
    ):
        yield Stack(server)
