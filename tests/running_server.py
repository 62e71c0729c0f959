"""`llamastead serve` as a child process, on free ports and a folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

START_LIMIT = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningServer:
    """One server a test talks to from outside, as a user would."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.grpc_port = free_port()
        self.log_path = folder / "server.log"
        self._settings = dict(settings or {})
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_addresses(self) -> tuple[str, str]:
        """The gateway's address and the bare gRPC port's."""
        return f"127.0.0.1:{self.port}", f"127.0.0.1:{self.grpc_port}"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self, *arguments: str) -> RunningServer:
        """Starts the server and returns when it says that it is ready."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LLAMASTEAD_", "LF_"))
        } | {
            "LLAMASTEAD_PORT": str(self.port),
            "LLAMASTEAD_GRPC_PORT": str(self.grpc_port),
            "LLAMASTEAD_DATA_DIR": str(self.data_dir),
            "LLAMASTEAD_ENGINE_THREADS": "1",
            **self._settings,
        }
        before = len(self.log)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llamastead_server.cli", "serve", *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=self.folder,
            )
        deadline = time.monotonic() + START_LIMIT
        while "Stop with Ctrl-C" not in self.log[before:]:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log[before:]}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the server was not ready in {START_LIMIT} s:\n{self.log[before:]}")
            time.sleep(0.05)
        return self

    def stop(self) -> int:
        """Stops the server as Ctrl-C would and returns its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kills the server with no chance to clean up."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)

    def descendants(self) -> list[int]:
        """Process ids of everything the server has started, workers of workers included."""
        assert self.process is not None
        parents: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found, queue = [], [self.process.pid]
        while queue:
            children = parents.get(queue.pop(), [])
            found += children
            queue += children
        return found


@contextlib.contextmanager
def running(folder: Path, *arguments: str, settings: Mapping[str, str] | None = None) -> Iterator[RunningServer]:
    """A server for one block; stopped at the end, whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RunningServer(folder, settings).start(*arguments)
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()


def wait_until_gone(pids: list[int], limit: float = 15.0) -> list[int]:
    """Waits for processes to end and returns those that have not."""
    deadline = time.monotonic() + limit
    alive = pids
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if _is_alive(pid)]
        time.sleep(0.05)
    return alive


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
