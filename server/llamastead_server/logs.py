"""Log lines, for people or for machines, each with the id of the request it belongs to."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from llamastead_server.domain.request_id import REQUEST_ID

# Terminals obey these, and a line break would forge a log line.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))} | {10: "\\n", 13: "\\r", 9: "\\t"}


def configure(level: str, log_format: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Sends all log records, and Python's warnings, to one stream.

    Args:
        level: Least level of this server's own records. Libraries are heard from WARNING up, unless it is DEBUG.
        log_format: `text` for people, `json` for one object a line.
        stream: Where the lines go. Default: standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if level in ("DEBUG", "ERROR") else "WARNING")
    for own in ("llamastead", "llamastead_server"):
        logging.getLogger(own).setLevel(level)
    logging.captureWarnings(True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_cancellation)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """gRPC calls it an error, with a traceback, when a stopping server cancels the calls that are left."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.000 INFO    llamastead.access [request id] message`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        time = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        request = f" [{REQUEST_ID.get()}]" if REQUEST_ID.get() else ""
        message = record.getMessage().translate(_CONTROLS)
        line = f"{time} {record.levelname:<7} {record.name}{request} {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, `request_id`, and a record's own `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if REQUEST_ID.get():
            entry["request_id"] = REQUEST_ID.get()
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            entry.update({name: value for name, value in fields.items() if name not in entry})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
