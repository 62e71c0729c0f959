"""What a worker prints, as log records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}
_LONGEST_LINE = 8192


class WorkerOutput:
    """Logs a stream a line at a time, each line at the level it begins with.

    Args:
        logger: Where the lines go.
        levels: The words for levels.
    """

    def __init__(self, logger: logging.Logger, levels: Mapping[str, int] = _LEVELS) -> None:
        self._log = logger
        self._levels = levels
        self.last_line = ""

    async def forward(self, stream: asyncio.StreamReader) -> None:
        """Reads the stream to its end; a line longer than 8 KiB is logged in parts."""
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
            known = self._levels.get(level)
            self.last_line = rest if known is not None else text
            self._log.log(known or logging.INFO, "%s", self.last_line)
