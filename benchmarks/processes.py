"""The processes behind a running server: which they are, where they listen, what processor time they take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROLES = (
    ("llamastead_server.workers.engine", "engine worker"),
    ("llamastead_server.workers.embedder", "embedder worker"),
    ("llamastead_server.workers.parser", "parser"),
    ("milvus", "Milvus Lite"),
    ("envoy", "Envoy"),
)


@dataclass(frozen=True, slots=True)
class Process:
    """A living process: its id, its part in the server and its command line."""

    pid: int
    role: str
    command: Sequence[str]

    @property
    def socket(self) -> str:
        """The gRPC address it listens on, as its command line says.

        Raises:
            LookupError: It names none.
        """
        for flag, value in zip(self.command, self.command[1:], strict=False):
            if flag == "--socket":
                return f"unix:{value}"
        for word in self.command:
            if word.startswith("unix:"):
                return word
        raise LookupError(f"{self.role} listens on no unix socket: {self.command}")


def family(server: int, descendants: Iterable[int]) -> Mapping[str, Process]:
    """The server and what it has started, by role."""
    found = {"server": Process(server, "server", _command(server))}
    for pid in descendants:
        command = _command(pid)
        words = " ".join(command)
        role = next((role for mark, role in _ROLES if mark in words), None)
        if role is not None:
            found.setdefault(role, Process(pid, role, command))
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process's living threads since they began, in seconds."""
    total = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(file.read_text().split()[0])
    return total / 1e9


def _command(pid: int) -> Sequence[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ()
