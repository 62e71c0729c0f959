"""Log lines, for people or for machines, each with the id of the request it belongs to."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from llamastead_server.domain.operations.log_book import LogBook, LogEntry
from llamastead_server.domain.request_id import REQUEST_ID

# Terminals obey these, and a line break would forge a log line.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))} | {10: "\\n", 13: "\\r", 9: "\\t"}


def configure(
    level: str,
    log_format: Literal["text", "json"],
    stream: TextIO | None = None,
    *,
    book: LogBook | None = None,
    secrets: Sequence[str] = (),
) -> None:
    """Sends all log records, and Python's warnings, to one stream.

    Args:
        level: Least level of this server's own records. Libraries are heard from WARNING up, unless it is DEBUG.
        log_format: `text` for people, `json` for one object a line.
        stream: Where the lines go. Default: standard error.
        book: Keeps the latest records too.
        secrets: What the book must not hold.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler] if book is None else [handler, BookHandler(book, secrets)]
    set_level(level)
    logging.captureWarnings(True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_cancellation)


def set_level(level: str) -> None:
    """Sets the least level of this server's own records; libraries are heard from WARNING up, unless it is DEBUG."""
    logging.getLogger().setLevel(level if level in ("DEBUG", "ERROR", "CRITICAL") else "WARNING")
    for own in ("llamastead", "llamastead_server"):
        logging.getLogger(own).setLevel(level)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """gRPC calls it an error, with a traceback, when a stopping server cancels the calls that are left."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


class BookHandler(logging.Handler):
    """Keeps records in a `LogBook`, without the secrets that would give access to the server.

    Args:
        book: Where they are kept.
        secrets: Texts that are masked.
    """

    def __init__(self, book: LogBook, secrets: Sequence[str] = ()) -> None:
        super().__init__()
        self._book = book
        masked = [re.escape(secret) for secret in secrets if secret]
        self._secrets = re.compile("|".join([r"(?<=[Bb]earer )[^\s'\"]+", r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)", *masked]))

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one record."""
        try:
            fields: dict[str, Any] = {}
            given = getattr(record, "fields", None)
            if isinstance(given, Mapping):
                plain = json.loads(json.dumps(dict(given), default=str))
                fields |= {
                    key: self._masked(value) if isinstance(value, str) else value for key, value in plain.items()
                }
            if record.exc_info:
                fields["exception"] = self._masked(logging.Formatter().formatException(record.exc_info))
            message = self._masked(record.getMessage())
            self._book.add(LogEntry(record.created, record.levelname, record.name, message, REQUEST_ID.get(), fields))
        except Exception:
            self.handleError(record)

    def _masked(self, text: str) -> str:
        return self._secrets.sub("***", text)


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
