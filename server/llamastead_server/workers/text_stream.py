"""Text from the bytes of tokens: never half a character, never a part of a stop string."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Any


class TextStream:
    """Joins the bytes of one completion's tokens into text that may be shown.

    Args:
        stops: Strings that end the text; none of them is part of it. Empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._read = 0
        self._shown = 0
        self._entries: deque[tuple[int, Any]] = deque()
        self.stopped = False

    def push(self, data: bytes, entry: Any = None) -> tuple[str, list[Any]]:
        """Takes one token's bytes; returns the text that can be shown now, and the entries of its tokens.

        Args:
            data: The token's bytes; none for a control token.
            entry: What belongs to the token, given back once all its text is shown; `None` is nothing.
        """
        if self.stopped:
            return "", []
        decoded = self._decoder.decode(data)
        self._read += len(decoded)
        self._held += decoded
        if entry is not None:
            unfinished = bool(self._decoder.getstate()[0])
            self._entries.append((self._read + unfinished, entry))
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._show(min(ends))
        return self._show(len(self._held) - self._begun())

    def finish(self) -> tuple[str, list[Any]]:
        """Ends the text: what might have become a stop string is shown, half a character is not."""
        if self.stopped:
            return "", []
        text, _ = self._show(len(self._held))
        entries = [entry for _, entry in self._entries]
        self._entries.clear()
        return text, entries

    def _show(self, count: int) -> tuple[str, list[Any]]:
        text, self._held = self._held[:count], self._held[count:]
        self._shown += len(text)
        entries = []
        while self._entries and self._entries[0][0] <= self._shown:
            entries.append(self._entries.popleft()[1])
        return text, entries

    def _begun(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
