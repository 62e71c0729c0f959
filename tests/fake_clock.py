"""A clock that tests move by hand."""

from __future__ import annotations


class FakeClock:
    """Seconds since the epoch; add to `now` to let time pass."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
