"""Cuts text into chunks that end where sentences end.

Chunks are spans of the text itself: nothing is rewritten, so a quoted chunk can be found in its document.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamastead_server.domain.errors import ValidationFailed

SMALLEST_CHUNK_SIZE = 50
LARGEST_CHUNK_SIZE = 16_000

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[^a-z\s])|[。！？][」』”]?\s*|\n\s*\n\s*(?=\S)")
_LINE_END = re.compile(r"\n\s*(?=\S)")
_WORD_END = re.compile(r"\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How long chunks are and how much of each is repeated in the next, both in characters."""

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not SMALLEST_CHUNK_SIZE <= self.size <= LARGEST_CHUNK_SIZE:
            raise ValidationFailed(
                f"chunk_size is {self.size}: use {SMALLEST_CHUNK_SIZE} to {LARGEST_CHUNK_SIZE} characters.",
                details={"chunk_size": str(self.size)},
            )
        if not 0 <= self.overlap <= self.size // 2:
            raise ValidationFailed(
                f"chunk_overlap is {self.overlap}: use 0 to half of chunk_size ({self.size // 2}) characters.",
                details={"chunk_overlap": str(self.overlap)},
            )


def spans(text: str, settings: ChunkSettings) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each chunk of `text`, in order.

    Together the spans hold every character that is not white space; none is longer than `settings.size`, and
    two neighbours share at most `settings.overlap` characters. A chunk ends at the last sentence end in its
    second half, else at the last line end there, else between words, else in the middle of a word.
    """
    sentences, lines, words = (_starts(pattern, text) for pattern in (_SENTENCE_END, _LINE_END, _WORD_END))
    start = _skip_space(text, 0)
    while start < len(text):
        limit = start + settings.size
        if limit >= len(text):
            cut = len(text)
        else:
            halfway = start + settings.size // 2
            cut = next((cut for starts in (sentences, lines, words) if (cut := _last(starts, halfway, limit))), limit)
        end = cut
        while end > start and text[end - 1].isspace():
            end -= 1
        yield start, end
        if cut >= len(text):
            return
        start = _next_start(text, cut, end, settings.overlap, sentences, words)


def _next_start(text: str, cut: int, end: int, overlap: int, sentences: Sequence[int], words: Sequence[int]) -> int:
    """Where the next chunk begins: at the first sentence, else the first word, of the overlap."""
    if overlap:
        for starts in (sentences, words):
            place = bisect_left(starts, end - overlap)
            if place < len(starts) and starts[place] < end:
                return starts[place]
    return _skip_space(text, cut)


def _starts(pattern: re.Pattern[str], text: str) -> Sequence[int]:
    return [match.end() for match in pattern.finditer(text) if match.end() < len(text)]


def _last(starts: Sequence[int], after: int, limit: int) -> int:
    """The last start in (after, limit], or 0."""
    place = bisect_right(starts, limit) - 1
    return starts[place] if place >= 0 and starts[place] > after else 0


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start
