"""The id that ties an answer to its log lines."""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request being served here; empty outside requests. Tasks inherit it."""

_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def adopt(offered: str | None) -> str:
    """Gives the id a caller offered, if it is 1 to 128 letters, digits, `.`, `_`, `:` or `-`, else a new one."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered
    return uuid4().hex
