"""Streamed completions, run many at a time, as their reader sees them.

What is run is a `Complete`: one way to the engine. The raw engine's process and the clients of the server use
the same code here, so that they differ in nothing but the way.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.measure import together

_BEGUN_AFTER = 3
_LONGEST_PAUSE = 0.05
_ENDLESS = 1500
"""Tokens of a stream that others join: more than it gets to generate before it is stopped."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed completion; the times are on the system's monotonic clock, in seconds.

    Attributes:
        started: When it was asked for.
        first: When the first text came.
        last: When the last text came.
        prompt_tokens: Tokens of its prompt.
        tokens: Tokens generated.
        events: Pieces the text came in.
    """

    started: float
    first: float
    last: float
    prompt_tokens: int
    tokens: int
    events: int

    @property
    def first_text(self) -> float:
        """Seconds from the request to the first text."""
        return self.first - self.started

    def plain(self) -> dict[str, Any]:
        """The stream as plain data."""
        return asdict(self)


class Reader:
    """Listens to one stream, and may have enough of it."""

    def __init__(self) -> None:
        self._events = 0
        self._begun = threading.Event()
        self._stopped = threading.Event()

    def heard(self) -> bool:
        """Notes that something came; tells whether to go on."""
        self._events += 1
        if self._events == _BEGUN_AFTER:
            self._begun.set()
        return not self._stopped.is_set()

    def wait_begun(self) -> None:
        """Waits until the stream runs."""
        if not self._begun.wait(120):
            raise TimeoutError("a stream did not begin within two minutes")

    def stop(self) -> None:
        """Ends the stream at its next event."""
        self._stopped.set()


Complete = Callable[[str, int, Reader], Stream | None]
"""Streams the completion of a prompt, of so many tokens; `None` if the reader stopped it."""


def burst(complete: Complete, prompts: Sequence[str], tokens: int) -> list[Stream]:
    """Streams one completion per prompt, all begun at the same time."""

    def run(index: int) -> Stream:
        stream = complete(prompts[index], tokens, Reader())
        assert stream is not None
        return stream

    return together(len(prompts), run)


def rate(streams: Sequence[Stream]) -> float:
    """Tokens of all streams per second, from the first request to the last text, prompts included."""
    start = min(stream.started for stream in streams)
    return sum(stream.tokens for stream in streams) / (max(stream.last for stream in streams) - start)


def joining(complete: Complete, running: Sequence[str], prompts: Sequence[str], tokens: int) -> list[Stream]:
    """Streams a completion per prompt, one after the other, while one per prompt in `running` goes on.

    They begin at random moments: the engine works in steps of tens of milliseconds, and whoever joins waits
    for the end of one.
    """
    readers = [Reader() for _ in running]
    threads = [
        threading.Thread(target=complete, args=(prompt, _ENDLESS, reader))
        for prompt, reader in zip(running, readers, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        for reader in readers:
            reader.wait_begun()
        streams = []
        for prompt in prompts:
            time.sleep(random.uniform(0, _LONGEST_PAUSE))
            stream = complete(prompt, tokens, Reader())
            assert stream is not None
            streams.append(stream)
        if not all(thread.is_alive() for thread in threads):
            raise RuntimeError("a stream that should have gone on has ended")
    finally:
        for reader in readers:
            reader.stop()
        for thread in threads:
            thread.join()
    return streams
