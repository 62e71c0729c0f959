"""Supervision of a worker: a child process that speaks gRPC on a unix socket.

The parent's half; `workers.child` is the child's. A worker is spawned as
`python -m <module> --socket <path> <arguments>`, watched by its own status call, killed when it no longer
answers, and started again with a growing pause. Its stdin is a pipe that only this process holds: when the
server dies, by whatever means, the worker reads the end of it and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from llamastead_server.domain.errors import Unavailable

WorkerState = Literal["starting", "ready", "failed", "stopped"]
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 256 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)
"""Options for channels to workers; the children serve with the same message limits."""

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}
_LONGEST_LINE = 8192


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself: `loading`, `ready` or `failed`, and why it failed."""

    state: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Supervision:
    """How closely a worker is watched, in seconds.

    Attributes:
        start_timeout: Longest time from spawning to ready, loading included.
        heartbeat_interval: Pause between two status calls to a ready worker.
        heartbeat_timeout: Longest time one status call may take.
        heartbeat_failures: Status calls in a row that must fail before the worker counts as hung.
        first_backoff: Pause before the first restart; doubles with each failure in a row.
        longest_backoff: Upper bound of that pause.
        stop_grace: Time between SIGTERM and SIGKILL.
    """

    start_timeout: float = 600.0
    heartbeat_interval: float = 2.0
    heartbeat_timeout: float = 5.0
    heartbeat_failures: int = 3
    first_backoff: float = 0.5
    longest_backoff: float = 30.0
    stop_grace: float = 5.0


class WorkerProcess:
    """One supervised worker.

    Create and start it on the event loop of the main thread. `start` returns when the worker is ready and
    raises when its first start fails; from then on it is restarted by itself whenever it dies or hangs, until
    `stop`. Callers ask `channel` for each call and treat a broken call as the worker's death.

    Args:
        name: What log lines and errors call it, for example `embedder`.
        module: The Python module to run; its `main` takes `--socket` and calls `workers.child`.
        arguments: Further command line arguments.
        probe: Asks a worker over a channel for its status; any exception counts as no answer.
        supervision: How closely it is watched.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        probe: Callable[[grpc.aio.Channel], Awaitable[WorkerStatus]],
        supervision: Supervision | None = None,
    ) -> None:
        self.name = name
        self._module = module
        self._arguments = tuple(arguments)
        self._probe = probe
        self._supervision = supervision or Supervision()
        self._log = logging.getLogger(f"llamastead.worker.{name}")
        self._state: WorkerState = "stopped"
        self._last_error = ""
        self._restarts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._channel: grpc.aio.Channel | None = None
        self._changed = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=20)
        self._task: asyncio.Task[None] | None = None
        self._answered_at = 0.0
        self._kill_reason = ""

    @property
    def state(self) -> WorkerState:
        """`starting`, `ready`, `failed` (dead; a restart may follow) or `stopped`."""
        return self._state

    @property
    def last_error(self) -> str:
        """Why the worker last died; empty if it never did."""
        return self._last_error

    @property
    def pid(self) -> int | None:
        """Process id of the living worker."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return self._restarts

    @property
    def seconds_since_answer(self) -> float:
        """Time since the worker last answered a status call."""
        return time.monotonic() - self._answered_at

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the ready worker.

        Raises:
            Unavailable: The worker is not ready.
        """
        if self._state != "ready" or self._channel is None:
            because = f" It last failed because {self._last_error}" if self._last_error else ""
            raise Unavailable(
                f"The worker {self.name!r} is {self._state}; try again shortly.{because}", retry_after=2.0
            )
        return self._channel

    async def start(self) -> None:
        """Spawns the worker and waits until it is ready.

        Raises:
            Unavailable: It exited, reported a failure or took longer than `start_timeout`; it is not retried.
        """
        if self._task is not None:
            raise RuntimeError(f"worker {self.name} was already started")
        self._set("starting")
        self._task = asyncio.create_task(self._supervise(), name=f"supervise-{self.name}")
        try:
            while self._state == "starting":
                await self._next_change()
        except BaseException:
            await self.stop()
            raise
        if self._state != "ready":
            error = self._last_error
            await self.stop()
            raise Unavailable(f"The worker {self.name!r} did not start: {error}")

    async def wait_ready(self, timeout: float) -> None:
        """Waits for the end of a restart, at most `timeout` seconds.

        Raises:
            Unavailable: It is still not ready, or stopped.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._state not in ("ready", "stopped"):
                    await self._next_change()
        _ = self.channel

    def kill(self, reason: str) -> None:
        """Kills the worker at once, so that it is started again."""
        process = self._process
        if process is not None and process.returncode is None:
            self._kill_reason = reason
            self._log.error("killing worker %s (pid %d): %s", self.name, process.pid, reason)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def stop(self) -> None:
        """Stops the worker and its supervision; the process is gone when this returns."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._set("stopped")

    def _set(self, state: WorkerState) -> None:
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _next_change(self) -> None:
        await self._changed.wait()

    async def _supervise(self) -> None:
        failures = 0
        while True:
            served, reason = await self._run_once()
            self._last_error = reason
            self._set("failed")
            self._log.error("worker %s failed: %s", self.name, reason)
            if not served and self._restarts == 0:
                return
            failures = 0 if served else failures + 1
            pause = self._supervision.first_backoff * 2 ** min(failures, 16)
            await asyncio.sleep(min(pause, self._supervision.longest_backoff))
            self._restarts += 1
            self._set("starting")

    async def _run_once(self) -> tuple[bool, str]:
        """Runs one process to its end; tells whether it ever got ready and why it ended."""
        folder = Path(tempfile.mkdtemp(prefix=f"llamastead-{os.getpid()}-"))
        self._last_lines.clear()
        self._kill_reason = ""
        output: asyncio.Task[None] | None = None
        process: asyncio.subprocess.Process | None = None
        served = False
        try:
            socket = folder / "worker.sock"
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, "--socket", str(socket), *self._arguments,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            assert process.stdout is not None
            output = asyncio.create_task(self._forward(process.stdout))
            exited = asyncio.create_task(process.wait())
            watch = asyncio.create_task(self._watch(process, socket))
            try:
                await asyncio.wait([exited, watch], return_when=asyncio.FIRST_COMPLETED)
                served = self._state == "ready"
                if watch.done():
                    self.kill(watch.result())
                    await exited
            finally:
                exited.cancel()
                watch.cancel()
                await asyncio.gather(watch, exited, return_exceptions=True)
            await asyncio.wait([output], timeout=1.0)
            return served, self._kill_reason or self._epitaph(process.returncode)
        finally:
            channel, self._channel = self._channel, None
            if process is not None:
                await self._end(process)
            if output is not None:
                output.cancel()
            if channel is not None:
                await channel.close(None)
            shutil.rmtree(folder, ignore_errors=True)

    async def _watch(self, process: asyncio.subprocess.Process, socket: Path) -> str:
        """Waits for readiness, then listens to the heart; returns the reason to kill the worker."""
        rules = self._supervision
        deadline = time.monotonic() + rules.start_timeout
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
        failures = 0
        while True:
            status = await self._ask(self._channel)
            ready = self._state == "ready"
            if status is not None and status.state == "failed":
                return status.error or "it reported a failure."
            if status is not None:
                failures = 0
                self._answered_at = time.monotonic()
                if not ready and status.state == "ready":
                    self._log.info("worker %s is ready (pid %d)", self.name, process.pid)
                    self._set("ready")
            elif ready:
                failures += 1
                if failures >= rules.heartbeat_failures:
                    return f"it hung: no answer to {failures} status calls in a row."
            if not ready and time.monotonic() > deadline:
                return f"it was not ready within {rules.start_timeout:g} s."
            await asyncio.sleep(rules.heartbeat_interval if self._state == "ready" else 0.05)

    async def _ask(self, channel: grpc.aio.Channel) -> WorkerStatus | None:
        try:
            async with asyncio.timeout(self._supervision.heartbeat_timeout):
                return await self._probe(channel)
        except (grpc.aio.AioRpcError, TimeoutError):
            return None

    async def _forward(self, stream: asyncio.StreamReader) -> None:
        """Logs what the worker prints, a line at a time, each at the level it begins with."""
        pending = b""
        while data := await stream.read(_LONGEST_LINE):
            *lines, pending = (pending + data).split(b"\n")
            if len(pending) > _LONGEST_LINE:
                lines, pending = [*lines, pending], b""
            for line in lines:
                self._log_line(line)
        self._log_line(pending)

    def _log_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            level, _, rest = text.partition(" ")
            known = _LEVELS.get(level)
            self._last_lines.append(rest if known is not None else text)
            self._log.log(known or logging.INFO, "%s", self._last_lines[-1])

    def _epitaph(self, returncode: int | None) -> str:
        if returncode is not None and returncode < 0:
            return f"it was killed by {signal.Signals(-returncode).name}."
        said = f" Its last words: {self._last_lines[-1]}" if self._last_lines else ""
        return f"it exited with status {returncode}.{said}"

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Ends the process; it is gone when this returns, also when this task is being cancelled."""
        if process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(self._supervision.stop_grace):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
