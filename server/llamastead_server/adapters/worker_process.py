"""Supervision of a worker: a child process that speaks gRPC on a unix socket.

The parent's half; `workers.child` is the child's. A worker is spawned as `python -m <module> --socket <path>
<arguments>`, watched by its own status call, killed when it no longer answers, and started again with a growing
pause. Its stdin is a pipe that only this process holds: when the server dies, the worker reads its end and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

import grpc

from llamastead_server.adapters.child_process import end, epitaph
from llamastead_server.adapters.socket_folder import socket_folder
from llamastead_server.adapters.supervision import Supervision, WorkerStatus
from llamastead_server.adapters.worker_output import WorkerOutput
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


class WorkerProcess:
    """One supervised worker.

    Create and start it on the event loop of the main thread. `start` returns when the worker is ready and
    raises when its first start fails; from then on it is restarted by itself whenever it dies or hangs, until
    `stop`. Callers ask `channel` for each call and treat a broken call as the worker's death.

    Attributes:
        restarts: How often it was started again.

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
        self.restarts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._channel: grpc.aio.Channel | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._kill_reason = ""
        self._served = False
        self._doubted = asyncio.Event()

    @property
    def state(self) -> WorkerState:
        """`starting`, `ready`, `failed` (dead; a restart may follow) or `stopped`."""
        return self._state

    @property
    def stopping(self) -> bool:
        """Whether nobody wants it any more: `stop` was called, or `start` was not."""
        return self._task is None

    @property
    def last_error(self) -> str:
        """Why the worker last died; empty if it never did."""
        return self._last_error

    @property
    def pid(self) -> int | None:
        """Process id of the living worker."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

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
                await self._changed.wait()
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
                    await self._changed.wait()
        _ = self.channel

    def doubt(self) -> None:
        """Tells that a call broke: the worker is not ready until it answers the next status call, made at once."""
        if self._state == "ready":
            self._set("starting")
            self._doubted.set()

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

    async def _supervise(self) -> None:
        failures = 0
        while True:
            served = await self._run_once()
            if not served and self.restarts == 0:
                return
            failures = 0 if served else failures + 1
            pause = self._supervision.first_backoff * 2 ** min(failures, 16)
            await asyncio.sleep(min(pause, self._supervision.longest_backoff))
            self.restarts += 1
            self._set("starting")

    async def _run_once(self) -> bool:
        """Runs one process to its end; tells whether it ever got ready."""
        try:
            with socket_folder() as folder:
                return await self._run_in(folder)
        except OSError as error:
            # No room for its folder, or no process left for it: that passes, and so must not end the supervision.
            self._last_error = f"it could not be started: {error}."
            self._set("failed")
            self._log.error("worker %s failed: %s", self.name, self._last_error)
            return False

    async def _run_in(self, folder: Path) -> bool:
        output = WorkerOutput(self._log)
        self._kill_reason = ""
        reading: asyncio.Task[None] | None = None
        process: asyncio.subprocess.Process | None = None
        self._served = False
        try:
            socket = folder / "worker.sock"
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, "--socket", str(socket), *self._arguments,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            assert process.stdout is not None
            reading = asyncio.create_task(output.forward(process.stdout))
            exited = asyncio.create_task(process.wait())
            watch = asyncio.create_task(self._watch(process, socket))
            try:
                await asyncio.wait([exited, watch], return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    self.kill(watch.result())
                    await exited
            finally:
                exited.cancel()
                watch.cancel()
                await asyncio.gather(watch, exited, return_exceptions=True)
            await asyncio.wait([reading], timeout=1.0)
            self._last_error = self._kill_reason or epitaph(process.returncode, output.last_line)
            self._set("failed")
            self._log.error("worker %s failed: %s", self.name, self._last_error)
            return self._served
        finally:
            channel, self._channel = self._channel, None
            if process is not None:
                await end(process, self._supervision.stop_grace)
            if reading is not None:
                reading.cancel()
            if channel is not None:
                await channel.close(1.0)

    async def _watch(self, process: asyncio.subprocess.Process, socket: Path) -> str:
        """Waits for readiness, then listens to the heart; returns the reason to kill the worker."""
        rules = self._supervision
        deadline = time.monotonic() + rules.start_timeout
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
        failures, served = 0, False
        while True:
            self._doubted.clear()
            status = await self._ask(self._channel)
            if status is not None and status.state == "failed":
                return status.error or "it reported a failure."
            if status is not None:
                failures = 0
                if self._state != "ready" and status.state == "ready":
                    if not served:
                        self._log.info("worker %s is ready (pid %d)", self.name, process.pid)
                    served = self._served = True
                    self._set("ready")
            elif served:
                failures += 1
                if failures >= rules.heartbeat_failures:
                    return f"it hung: no answer to {failures} status calls in a row."
            if not served and time.monotonic() > deadline:
                return f"it was not ready within {rules.start_timeout:g} s."
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rules.heartbeat_interval if served else 0.05):
                    await self._doubted.wait()

    async def _ask(self, channel: grpc.aio.Channel) -> WorkerStatus | None:
        try:
            async with asyncio.timeout(self._supervision.heartbeat_timeout):
                return await self._probe(channel)
        except Exception as error:
            # Whatever keeps a worker from answering, the count of failures decides what it means.
            self._log.debug("no status from worker %s: %s", self.name, error)
            return None
