"""Private folders for unix sockets, which a killed server cannot leave behind for good."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "llamastead-socket-"
_LOCK = "lock"
_YOUNG_SECONDS = 60.0


@contextlib.contextmanager
def socket_folder() -> Iterator[Path]:
    """Makes a folder that only this user may enter, and removes it at the end.

    Its lock ends with this process in any manner, so folders whose lock is free were left by a killed server;
    they are removed too.
    """
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with (folder / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_abandoned(folder.parent)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for other in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime < _YOUNG_SECONDS:
                continue
            with (other / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)
