"""Times as the contract shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal


def rfc3339(seconds: float, precision: Literal["seconds", "milliseconds"] = "milliseconds") -> str:
    """Seconds since the epoch as RFC 3339 has them, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision)
