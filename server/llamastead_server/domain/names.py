"""The one gate for names that become paths, keys or filters.

Envoy decodes `%2F` inside a path segment before a name reaches the server, and headers and multipart
parts carry names too, so every name is checked here, whatever road it came by.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from llamastead_server.domain.errors import InvalidRequest

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_FILE_HASH = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_WINDOWS_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))]
)
_RULE = (
    "1 to 100 letters, digits, '.', '_' or '-', starting with a letter or digit, not ending with '.', and no name that "
    "some systems reserve for devices"
)


class ProjectRef(NamedTuple):
    """A project's full name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def project_ref(namespace: str, project: str) -> ProjectRef:
    """Checks both parts of a project's name."""
    return ProjectRef(segment("namespace", namespace), segment("project", project))


def segment(kind: str, value: str) -> str:
    """Checks a namespace, project, dataset, database or template name.

    Raises:
        InvalidRequest: The name could leave its folder or break on some file system.
    """
    if not _SEGMENT.fullmatch(value) or value.endswith(".") or value.split(".")[0].lower() in _WINDOWS_DEVICES:
        raise InvalidRequest(f"Invalid {kind} name {_shown(value)}: use {_RULE}.", details={"field": kind})
    return value


def session_id(value: str) -> str:
    """Checks a session id that a client chose."""
    if not _SESSION_ID.fullmatch(value):
        raise InvalidRequest(
            f"Invalid session id {_shown(value)}: use 1 to 128 letters, digits, '.', '_', ':' or '-', "
            "starting with a letter or digit.",
            details={"field": "session_id"},
        )
    return value


def file_hash(value: str) -> str:
    """Checks a file hash: the SHA-256 of the content, in lower-case hex."""
    lowered = value.lower()
    if not _FILE_HASH.fullmatch(lowered):
        raise InvalidRequest(
            f"Invalid file hash {_shown(value)}: it is the 64 hex digits of a SHA-256.", details={"field": "file_hash"}
        )
    return lowered


def file_name(value: str) -> str:
    """Makes a client's file name safe to show and to record.

    Content is stored by hash, so the name is never a path; folders that some clients send are cut off
    and control and bidirectional-override characters are removed.
    """
    base = re.split(r"[/\\]", value)[-1]
    cleaned = _CONTROL.sub("", base).strip()
    if cleaned in ("", ".", ".."):
        return "unnamed"
    if len(cleaned.encode()) <= 255:
        return cleaned
    stem, dot, suffix = cleaned.rpartition(".")
    suffix = f".{suffix}" if dot and len(suffix) <= 16 else ""
    room = 255 - len(suffix.encode())
    return (stem or cleaned).encode()[:room].decode(errors="ignore") + suffix


def path_inside(root: Path, relative: str) -> Path:
    """Resolves a client's path inside `root`, symbolic links included.

    Raises:
        InvalidRequest: The path leads outside.
    """
    if "\x00" in relative:
        raise InvalidRequest("Invalid path: it holds a NUL character.")
    resolved = (root / relative).resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise InvalidRequest(f"Invalid path {_shown(relative)}: it leads outside the folder it belongs in.")
    return resolved


def _shown(value: str) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "...'"
