"""Tables and sheets as parts of a document, cut as their settings say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamastead_server.domain.datasets.chunking import ChunkStrategy
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.workers import tables
from llamastead_server.workers.reading import Part
from llamastead_server.workers.text_files import Unreadable


def grid(cells: tables.Cells, options: Mapping[str, Any], strategy: ChunkStrategy, **metadata: str) -> list[Part]:
    """The rows of a table as one part, or each of its columns."""
    if strategy == "columns":
        return [
            Part(text, metadata={**metadata, "column": name} if name else metadata, rows=True)
            for name, text in tables.columns_text(cells, options)
        ]
    return [Part(tables.rows_text(cells, options), metadata=metadata, rows=True)]


def sheets(result: Any, settings: ReadSettings) -> Iterator[Part]:
    """The sheets that the settings want, each as its rows or its columns.

    Raises:
        Unreadable: There is none of them.
    """
    names = list(result.metadata.get("sheet_names") or ())
    wanted = settings.options.get("sheets")
    if wanted and not set(wanted) & set(names):
        raise Unreadable(f"The file has no sheet of the configured names; it has {', '.join(map(repr, names))[:300]}.")
    for table in result.tables:
        name = names[table.page_number - 1] if 0 < table.page_number <= len(names) else ""
        if not wanted or name in wanted:
            yield from grid(
                table.cells, settings.options, settings.chunking.strategy, **({"sheet": name} if name else {})
            )
