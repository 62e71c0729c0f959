"""The embedded Milvus: Milvus Lite's C++ server as a child process that never outlives this one.

The package's own launcher is not used: it deletes the lock file of a server that is running when a second
one fails to start, it puts its sockets into the temporary folder for good, and Ctrl-C reaches its child
before the collections are closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from llamastead_server.domain.errors import Internal, Unavailable

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.005
_LEAST_SPACE = 8 << 20
_log = logging.getLogger(__name__)


class MilvusLite:
    """One Milvus Lite server on one data folder. Its methods block.

    Two locks are at work. The *guard* is an flock on a file in the data folder that this process and its
    child share: as long as one of them lives, no other server opens the folder. The *lifeline* is a lock of
    this process alone, which Milvus Lite waits for and exits once it gets it: the kernel releases it when
    this process dies, by whatever means.

    Args:
        folder: Data folder; made if it is absent.
        wait: Seconds to wait for the guard, because the child of a server that was just killed may still
            be closing its files.
    """

    def __init__(self, folder: Path, *, wait: float = 3.0) -> None:
        self._folder = folder.absolute()
        # Here, as looking for a package takes the lock of imports: see `milvus_connection`.
        self._libraries = _library_folder()
        self._wait = wait
        self._guard: IO[str] | None = None
        self._lifeline: IO[str] | None = None
        self._runtime: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data_file(self) -> Path:
        """The file that holds all collections."""
        return self._folder / "milvus.db"

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        return self._process.pid if self.alive and self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_short_of_space(self) -> bool:
        """Whether its disk has no room for what it writes."""
        return shutil.disk_usage(self._folder).free < _LEAST_SPACE

    def ends_within(self, seconds: float) -> bool:
        """Waits for the child's end and tells whether it came; a killed process takes a moment to be gone."""
        process = self._process
        if process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode is not None

    def kill(self) -> None:
        """Kills the child, which no longer answers; `start` makes another."""
        process = self._process
        if process is not None:
            process.kill()

    def start(self) -> str:
        """Starts the child, after the end of a former one, and returns the URI it answers on.

        Raises:
            Unavailable: Another server uses the data folder, or the child did not start.
        """
        self._end_child()
        self._take_guard()
        assert self._guard is not None
        runtime = self._make_runtime()
        lifeline = runtime / "lifeline"
        self._lifeline = lifeline.open("a")
        fcntl.lockf(self._lifeline, fcntl.LOCK_EX)
        # A fresh name each time: pymilvus remembers a failed connection by its address.
        path = runtime / f"{secrets.token_hex(4)}.sock"
        libraries = self._libraries
        self._process = subprocess.Popen(
            [libraries / "milvus", self.data_file, f"unix:{path}", "ERROR", lifeline],
            cwd=self._folder,
            env={**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._guard.fileno()],
            # The terminal's Ctrl-C must not reach it. Not a session of its own: Linux shares processors among sessions
            # first, whatever the niceness of who works in them.
            process_group=0,
        )
        self._await_socket(path)
        return f"unix:{path}"

    def stop(self) -> None:
        """Ends the child in order and gives the data folder free."""
        self._end_child()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()

    def _take_guard(self) -> None:
        if self._guard is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        guard = (self._folder / "milvus.lock").open("a")
        deadline = time.monotonic() + self._wait
        while True:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    guard.close()
                    raise Unavailable(
                        f"The vectors in {self._folder} are in use by another server. "
                        "Stop that one, or give this one a data folder of its own."
                    ) from None
                time.sleep(_POLL_SECONDS)
            else:
                self._guard = guard
                return

    def _make_runtime(self) -> Path:
        """Makes the folder for socket and lifeline, in the system's temporary folder: a socket's path must be short.

        Its name follows from the data folder, so the one that a killed server left is found and replaced.
        """
        named = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:12]
        runtime = Path(tempfile.gettempdir()) / f"llamastead-milvus-{os.getuid()}-{named}"
        shutil.rmtree(runtime, ignore_errors=True)
        try:
            runtime.mkdir(mode=0o700)
        except OSError as error:
            self.stop()
            raise Unavailable(f"The embedded vector store can't make its folder for sockets: {error}.") from error
        self._runtime = runtime
        return runtime

    def _await_socket(self, path: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                return
            if not self.alive or time.monotonic() > deadline:
                status = self._process.returncode if self._process is not None else None
                self.stop()
                raise Unavailable(f"The embedded vector store did not start (exit status {status}).")
            time.sleep(_POLL_SECONDS)

    def _end_child(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            lifeline.close()
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _log.warning("killing the embedded vector store: it did not stop within %g s", _STOP_SECONDS)
                process.kill()
                process.wait()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            shutil.rmtree(runtime, ignore_errors=True)


def _library_folder() -> Path:
    spec = importlib.util.find_spec("milvus_lite")
    if spec is None or spec.origin is None:
        raise Internal("The package milvus-lite is not installed: reinstall the server, or set MILVUS_URI.")
    return Path(spec.origin).parent / "lib"
