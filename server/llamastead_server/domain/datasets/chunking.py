"""Cuts text into chunks that end where sentences, paragraphs or rows end.

Chunks are spans of the text itself: nothing is rewritten, so a quoted chunk can be found in its document.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llamastead_server.domain.errors import ValidationFailed

SMALLEST_CHUNK_SIZE = 50
LARGEST_CHUNK_SIZE = 50_000
LONGEST_ROWS = 16_000
"""Most characters of a chunk that is cut by its number of rows."""

ChunkStrategy = Literal[
    "sentences",
    "paragraphs",
    "characters",
    "tokens",
    "semantic",
    "code",
    "sections",
    "headings",
    "pages",
    "email_sections",
    "rows",
    "columns",
    "full",
]
"""Where chunks end. `sections` and `headings` cut at headings first, `pages` at pages, `columns` at columns;
`semantic` prefers headings, then paragraphs; a token of `tokens` is four characters; `full` cuts only what is too long.
"""

CHUNK_STRATEGIES: tuple[str, ...] = get_args(ChunkStrategy)

_CHARACTERS_PER_TOKEN = 4
_HEADING = re.compile(r"\n\s*(?=#{1,6} \S)")
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*(?=\S)")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[^a-z\s])|[。！？][」』”]?\s*|\n\s*\n\s*(?=\S)")
_LINE_END = re.compile(r"\n\s*(?=\S)")
_WORD_END = re.compile(r"\s+(?=\S)")


_BREAKS: dict[str, tuple[re.Pattern[str], ...]] = {
    "characters": (),
    "tokens": (_WORD_END,),
    "semantic": (_HEADING, _PARAGRAPH_END, _SENTENCE_END, _LINE_END, _WORD_END),
    "code": (_PARAGRAPH_END, _LINE_END, _WORD_END),
    **dict.fromkeys(
        ("paragraphs", "sections", "headings", "email_sections"), (_PARAGRAPH_END, _SENTENCE_END, _LINE_END, _WORD_END)
    ),
}
_BY_SENTENCES = (_SENTENCE_END, _LINE_END, _WORD_END)


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How text is cut.

    Attributes:
        size: Target size of a chunk in characters (in tokens for the strategy `tokens`).
        overlap: How much of a chunk is repeated in the next one, in the same unit.
        strategy: Where chunks end.
        rows: Most rows of a table in one chunk; `None` is as many as fit.
    """

    size: int
    overlap: int
    strategy: ChunkStrategy = "sentences"
    rows: int | None = None

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

    @property
    def characters(self) -> tuple[int, int]:
        """Size and overlap in characters, as the strategy means them."""
        match self.strategy:
            case "tokens":
                size = min(self.size * _CHARACTERS_PER_TOKEN, LARGEST_CHUNK_SIZE)
                return size, min(self.overlap * _CHARACTERS_PER_TOKEN, size // 2)
            case "full" | "pages":
                return LARGEST_CHUNK_SIZE, 0
        return self.size, self.overlap


def spans(text: str, settings: ChunkSettings) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each chunk of `text`, in order.

    Together the spans hold every character that is not white space; none is longer than the settings' size, and
    two neighbours share at most their overlap. A chunk ends at the best place in its second half that the
    strategy knows, such as the last sentence end, else the last line end, else between words, else anywhere.
    """
    size, overlap = settings.characters
    patterns = _BREAKS.get(settings.strategy, _BY_SENTENCES)
    breaks = [_starts(pattern, text) for pattern in patterns]
    # A line of running text begins in the middle of a sentence: the overlap never begins there.
    restarts = [
        starts
        for pattern, starts in zip(patterns, breaks, strict=True)
        if pattern is not _LINE_END or settings.strategy == "code"
    ]
    start = _skip_space(text, 0)
    while start < len(text):
        limit = start + size
        if limit >= len(text):
            cut = len(text)
        else:
            halfway = start + size // 2
            cut = next((cut for starts in breaks if (cut := _last(starts, halfway, limit))), limit)
        end = cut
        while end > start and text[end - 1].isspace():
            end -= 1
        yield start, end
        if cut >= len(text):
            return
        # A chunk no longer than the overlap, which long white space follows, would be begun again for ever.
        start = _next_start(text, cut, end, overlap if end - start > overlap else 0, restarts)


def row_spans(text: str, settings: ChunkSettings) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each chunk of a table of one row per line; a row is cut only when it is too long."""
    size = LONGEST_ROWS if settings.rows else settings.characters[0]
    begin = end = rows = 0
    for line_start, line_end in _lines(text):
        if rows and (line_end - begin > size or rows == settings.rows):
            yield from _whole_or_cut(text, begin, end, size)
            begin, rows = line_start, 0
        elif not rows:
            begin = line_start
        end, rows = line_end, rows + 1
    if rows:
        yield from _whole_or_cut(text, begin, end, size)


def _whole_or_cut(text: str, begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    if end - begin <= size:
        yield begin, end
        return
    for start, stop in spans(text[begin:end], ChunkSettings(size, 0)):
        yield begin + start, begin + stop


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if not text[start:end].isspace() and end > start:
            yield start, end
        start = end + 1


def _next_start(text: str, cut: int, end: int, overlap: int, restarts: Sequence[Sequence[int]]) -> int:
    """Where the next chunk begins: at the first paragraph, sentence or word of the overlap, as the strategy knows."""
    if overlap:
        for starts in restarts:
            place = bisect_left(starts, end - overlap)
            if place < len(starts) and starts[place] < end:
                return starts[place]
        if not restarts:
            return end - overlap
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
