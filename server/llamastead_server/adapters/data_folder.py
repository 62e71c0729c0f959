"""The data folder: one server at a time, and a private place for its sockets."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

from llamastead_server.domain.errors import Conflict


class DataFolder:
    """Holds a data folder for one server while the block runs.

    The lock is the kernel's, so it goes with the process however that ends.

    Attributes:
        path: The folder.
        sockets: Folder for unix sockets, readable by this user only. It lies in the system's temporary folder,
            because a socket's path has to be short.

    Raises:
        Conflict: Another server holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        named = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        self.sockets = Path(tempfile.gettempdir()) / f"llamastead-{os.getuid()}-{named}"
        self._lock: IO[str] | None = None

    def __enter__(self) -> DataFolder:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (self.path / ".lock").exists():
                self._close_to_others()
            lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise Conflict(f"The data folder {self.path} can't be used: {error.strerror}.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise Conflict(
                f"Another server uses the data folder {self.path}: stop it, or set LLAMASTEAD_DATA_DIR to another one."
            ) from None
        self._lock = lock
        # What a killed server left there is nobody's now: the lock says so.
        shutil.rmtree(self.sockets, ignore_errors=True)
        self.sockets.mkdir(mode=0o700)
        return self

    def _close_to_others(self) -> None:
        """Keeps others out of what earlier versions left readable.

        Only where a server has been before: a folder that was there for something else keeps its mode, and what the
        server writes in it is private all the same.
        """
        status = self.path.stat()
        if status.st_uid == os.getuid() and not status.st_mode & stat.S_ISVTX:
            self.path.chmod(0o700)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.sockets, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
