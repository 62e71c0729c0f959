"""What reading a document gives: its text in parts, and what is worth knowing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from llamastead_server.workers.tables import Cells


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a document's text that chunks never cross.

    Attributes:
        text: The text.
        page: Page or slide, from 1.
        metadata: What its chunks are to know.
        rows: Whether each line is a row of a table.
    """

    text: str
    page: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rows: bool = False


@dataclass(slots=True)
class Reading:
    """A document that was read.

    Attributes:
        parser: What read it.
        parts: Its text.
        metadata: Title, authors, dates, pages.
        tables: Its tables: page or `None`, and the cells.
        links: Targets of its links.
        headings: Its headings: level and text; only when they were asked for.
        attachments: What it carries beside its text: `name`, and `parser` or the `reason` why it was not read.
    """

    parser: str
    parts: list[Part]
    metadata: dict[str, Any] = field(default_factory=dict)
    tables: list[tuple[int | None, Cells]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)
    attachments: list[dict[str, str]] = field(default_factory=list)


def described(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth knowing of a document beside its text."""
    known = {
        "title": metadata.get("title") or metadata.get("subject"),
        "authors": [str(author)[:200] for author in metadata.get("authors") or ()][:20],
        "created_at": _iso(metadata.get("created_at")),
        "page_count": metadata.get("page_count"),
    }
    return {key: value[:500] if isinstance(value, str) else value for key, value in known.items() if value}


def _iso(moment: Any) -> Any:
    try:
        return parsedate_to_datetime(moment).isoformat()
    except (TypeError, ValueError):
        return moment  # all but mail says it so
