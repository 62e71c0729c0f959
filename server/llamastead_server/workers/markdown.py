"""Markdown's headings and the sections between them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def headings(text: str) -> list[tuple[int, str]]:
    """Level and text of each heading, in order."""
    return [(level, title) for _, level, title in _marked_lines(text) if title]


def split_sections(text: str) -> Iterator[tuple[str, str]]:
    """Yields each section, its heading included, with the trail of headings that lead to it."""
    trail: list[tuple[int, str]] = []
    lines = text.splitlines(keepends=True)
    starts = [(number, level, title) for number, level, title in _marked_lines(text) if level]
    first = starts[0][0] if starts else len(lines)
    if before := "".join(lines[:first]).strip():
        yield "", before
    for place, (number, level, title) in enumerate(starts):
        end = starts[place + 1][0] if place + 1 < len(starts) else len(lines)
        trail = [(above, name) for above, name in trail if above < level] + [(level, title)]
        yield " > ".join(name for _, name in trail)[:300], "".join(lines[number:end])


def without_code(text: str) -> str:
    """The text without its fenced code blocks."""
    kept, fence = [], ""
    for line in text.splitlines(keepends=True):
        fence, was = _after(line, fence), fence
        if not fence and not was:
            kept.append(line)
    return "".join(kept)


def _marked_lines(text: str) -> Iterator[tuple[int, int, str]]:
    """Number of the line, level and text of each heading outside of code."""
    fence = ""
    for number, line in enumerate(text.splitlines()):
        fence = _after(line, fence)
        if not fence and (found := _HEADING.match(line)):
            yield number, len(found[1]), found[2].replace("**", "").replace("`", "")[:200]


def _after(line: str, fence: str) -> str:
    """The fence that is open after a line."""
    found = _FENCE.match(line)
    if not fence:
        return found[1] if found else ""
    closes = found and found[1][0] == fence[0] and len(found[1]) >= len(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence
