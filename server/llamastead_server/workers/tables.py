"""Tables as text: a line per row that names its columns, so that a chunk is understood without the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Cells = Sequence[Sequence[str]]


def parse_csv(text: str, options: Mapping[str, Any], longest: int) -> Cells:
    """The cells of a CSV file; raises `csv.Error` when it is malformed."""
    csv.field_size_limit(longest)
    delimiter = options.get("delimiter") or _delimiter(text)
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=options.get("quotechar", '"')))


def _delimiter(text: str) -> str:
    try:
        return csv.Sniffer().sniff(text[:65536].rpartition("\n")[0] or text[:65536], ",;\t|").delimiter
    except csv.Error:
        return ","


def rows_text(cells: Cells, options: Mapping[str, Any]) -> str:
    """The rows, a line each: `name: Gate; note: closes at nine`."""
    header, rows = _prepared(cells, options)
    return "\n".join(line for row in rows if (line := _line(header, row)))


def columns_text(cells: Cells, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each column's name, and its values, a line each."""
    header, rows = _prepared(cells, options)
    for index, name in enumerate(header):
        values = [row[index] for row in rows if index < len(row) and row[index]]
        if values:
            yield name, "\n".join([name, *values]) if name else "\n".join(values)


def _prepared(cells: Cells, options: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    missing = set(options.get("na_values") or ())
    start = (options.get("skiprows") or 0) + (options.get("header_row") or 0)
    rows = [[_flat(cell, missing) for cell in row] for row in cells[start:]]
    rows = [row for row in rows if any(row)]
    if not rows:
        return [], []
    # A table of one row has no header: it is all there is to say.
    header, body = (rows[0], rows[1:]) if len(rows) > 1 else ([""] * len(rows[0]), rows)
    renamed = options.get("field_mapping") or {}
    return [renamed.get(name, name) for name in header], body


def _line(header: Sequence[str], row: Sequence[str]) -> str:
    named = [
        f"{header[index]}: {cell}" if index < len(header) and header[index] else cell
        for index, cell in enumerate(row)
        if cell
    ]
    return "; ".join(named)


def _flat(cell: Any, missing: set[str]) -> str:
    text = " ".join(str(cell).split())
    return "" if text in missing else text
