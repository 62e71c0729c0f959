"""Other wordings of a query, and the questions that a long one consists of, by rules: no model is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamastead_server.domain.retrieval.query_expansion import content_words

_SENTENCE = re.compile(r"(?<=[.?!;])\s+")
_CLAUSE = re.compile(r",\s+(?:(?:and|or|but)\s+)?|\s+(?:and|or|but)\s+", re.IGNORECASE)
_PART = re.compile(
    r"(?<=[?;])\s*|(?<=[.!])\s+|[,;]?\s+(?:and also|and|also|additionally|furthermore|moreover)\b,?\s+", re.IGNORECASE
)


def variants(query: str, most: int) -> Sequence[str]:
    """The query, then its content words alone, its sentences and its clauses: at most `most`, each once."""
    found = [query, " ".join(content_words(query)), *_SENTENCE.split(query), *_CLAUSE.split(query)]
    distinct: dict[str, str] = {}
    for text in found:
        key = " ".join(content_words(text))
        if text is query or (key and text.strip().lower() != query.strip().lower()):
            distinct.setdefault(text.strip().lower(), text.strip())
    return list(distinct.values())[:most]


def questions(query: str, *, most: int, longer_than: int, shortest: int) -> Sequence[str]:
    """The questions of a query longer than `longer_than` characters: its sentences and what `and` and its like join.

    Parts shorter than `shortest` characters stay with the one before them. A query that has no two parts, or is
    not long enough to be worth it, is its own only question.
    """
    if len(query) <= longer_than:
        return [query]
    parts: list[str] = []
    start = 0
    for match in [*_PART.finditer(query), None]:
        end = len(query) if match is None else match.start()
        piece = query[start:end].strip()
        if len(piece) >= shortest:
            parts.append(piece)
        elif parts and piece:
            parts[-1] = f"{parts[-1]} {piece}"
        if match is not None:
            # A short beginning stays with what follows it.
            start = start if not parts and piece else match.end()
    return parts[:most] if len(parts) > 1 else [query]
