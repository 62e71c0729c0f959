"""Turns a file into text: sections that know their page, and what is worth knowing beside the text."""

from __future__ import annotations

import csv
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from llamastead_server.domain.datasets.chunking import ChunkStrategy
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.workers import archive, tables
from llamastead_server.workers.formats import ARCHIVES, GRIDS, TEXT, format_of
from llamastead_server.workers.markdown import headings, split_sections, without_code
from llamastead_server.workers.ocr import Ocr
from llamastead_server.workers.text_files import Unreadable, decoded, reason, unwrapped

_MOST_PAGES = 20_000


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
    """

    parser: str
    parts: list[Part]
    metadata: dict[str, Any] = field(default_factory=dict)
    tables: list[tuple[int | None, tables.Cells]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)


class Reader:
    """Reads files of every kind.

    Args:
        longest_text: Most characters one document may hold.
    """

    def __init__(self, longest_text: int) -> None:
        import kreuzberg

        self._kreuzberg = kreuzberg
        self._longest_text = longest_text
        self._slide_mark = f"slide-{secrets.token_hex(8)}"

    def read(self, path: Path, filename: str, settings: ReadSettings, *, outline: bool = False) -> Reading:
        """Reads a file.

        Args:
            path: The file.
            filename: Its name, which tells its kind.
            settings: How it is read.
            outline: Whether its headings are wanted.

        Raises:
            Unreadable: Says why.
        """
        size = path.stat().st_size
        if size == 0:
            raise Unreadable("The file is empty.")
        parser, media_type = format_of(settings, filename)
        if parser in TEXT:
            if size > 4 * self._longest_text:
                raise self._too_long()
            reading = self._read_text(parser, decoded(path.read_bytes(), filename, settings), settings, outline)
        elif parser == "image":
            reading = Reading(parser, [Part(self._picture(path, media_type, settings))])
        else:
            if parser in ARCHIVES:
                try:
                    archive.check(path)
                except archive.Bomb:
                    raise Unreadable(reason("bomb")) from None
            reading = self._read_binary(parser, path, media_type, settings, outline)
        if sum(len(part.text) for part in reading.parts) > self._longest_text:
            raise self._too_long()
        if not settings.options.get("extract_metadata", True):
            reading.metadata = {}
        if not any(part.text.strip() for part in reading.parts):
            raise Unreadable(self._nothing_found(parser, settings))
        return reading

    def _read_text(self, parser: str, text: str, settings: ReadSettings, outline: bool) -> Reading:
        if len(text) > self._longest_text:
            raise self._too_long()
        options, strategy = settings.options, settings.chunking.strategy
        if parser == "csv":
            try:
                cells = tables.parse_csv(text, options, self._longest_text)
            except csv.Error as error:
                raise Unreadable(f"The file is damaged or not what its name says. ({error})") from None
            return Reading(parser, _grid(cells, options, strategy), tables=[(None, cells)])
        if parser == "text":
            if options.get("clean_text"):
                text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]+\n", "\n", re.sub(r"[^\S\n]{2,}", " ", text)))
            return Reading(parser, [Part(text)], headings=headings(text) if outline else [])
        media_type = "text/html" if parser == "html" else "text/markdown"
        if parser == "markdown" and options.get("extract_code_blocks", True) is False:
            text = without_code(text)
        result = self._extract(text.encode(), media_type)
        reading = self._reading(parser, result)
        if parser == "markdown":
            reading.headings = headings(text)
            if strategy in ("sections", "headings"):
                reading.parts = [
                    Part(self._extract(body.encode(), media_type).content, metadata={"section": trail} if trail else {})
                    for trail, body in split_sections(text)
                ]
        elif outline:
            reading.headings = headings(self._extract(text.encode(), media_type, output_format="markdown").content)
        return reading

    def _read_binary(self, parser: str, path: Path, media_type: str, settings: ReadSettings, outline: bool) -> Reading:
        options = settings.options
        if parser == "pdf":
            self._check_pages(path)
        extra: dict[str, Any] = {}
        if parser == "pptx":
            extra["pages"] = self._kreuzberg.PageConfig(
                extract_pages=True, insert_page_markers=True, marker_format=self._slide_mark + ":{page_num}:"
            )
        if parser == "docx":
            both = options.get("include_header_footer", False)
            extra["content_filter"] = self._kreuzberg.ContentFilterConfig(
                include_headers=both or options.get("extract_headers", False),
                include_footers=both or options.get("extract_footers", False),
            )
        result = self._extract(path, media_type, **extra)
        reading = self._reading(parser, result)
        if parser == "pdf":
            reading.parts = self._pdf_parts(path, result, settings)
        elif parser == "pptx":
            reading.parts = list(_slides(result.content, self._slide_mark))
        elif parser in GRIDS:
            reading.parts = list(_sheets(result, settings))
        if outline:
            reading.headings = headings(self._extract(path, media_type, output_format="markdown").content)
        return reading

    def _extract(self, source: Path | bytes, media_type: str, **options: Any) -> Any:
        kreuzberg = self._kreuzberg
        config = kreuzberg.ExtractionConfig(
            **{
                "use_cache": False,
                "disable_ocr": True,
                "output_format": "plain",
                "pages": kreuzberg.PageConfig(extract_pages=True),
                "concurrency": kreuzberg.ConcurrencyConfig(max_threads=1),
                **options,
            }
        )
        try:
            if isinstance(source, bytes):
                return kreuzberg.extract_bytes_sync(source, media_type, config)
            return kreuzberg.extract_file_sync(source, media_type, config)
        except kreuzberg.KreuzbergError as error:
            raise Unreadable(reason(str(error))) from None

    def _reading(self, parser: str, result: Any) -> Reading:
        return Reading(
            parser,
            [Part(result.content)],
            _described(result.metadata),
            [(table.page_number if parser == "pdf" else None, table.cells) for table in result.tables],
            [str(link["url"]) for link in result.uris or ()],
        )

    def _check_pages(self, path: Path) -> None:
        try:
            with self._kreuzberg.PdfPageIterator(str(path)) as pages:
                count = len(pages)
        except Exception:
            return  # The reader says better what is wrong.
        if count > _MOST_PAGES:
            raise Unreadable(f"The file has {count:,} pages, more than the {_MOST_PAGES:,} one may have: split it.")

    def _pdf_parts(self, path: Path, result: Any, settings: ReadSettings) -> list[Part]:
        # A PDF's whole text repeats its tables at the end; its pages don't.
        options = settings.options
        numbered = options.get("extract_page_info", True)
        unwrap = options.get("clean_text", True) and not options.get("preserve_layout", False)
        ocr = self._ocr(settings)
        parts = []
        for page in result.pages or ():
            number, text = int(page["page_number"]), str(page["content"])
            if not text.strip() and ocr is not None:
                text = self._recognised(lambda index=number - 1: ocr.page(path, index))
            parts.append(Part(unwrapped(text) if unwrap else text, number if numbered else None))
        if options.get("combine_pages"):
            return [Part("\n\n".join(part.text for part in parts))]
        return parts or [Part(result.content)]

    def _picture(self, path: Path, media_type: str, settings: ReadSettings) -> str:
        ocr = self._ocr(settings)
        if ocr is None:
            return ""
        return self._recognised(lambda: ocr.picture(path, media_type))

    def _recognised(self, recognise: Any) -> str:
        try:
            return str(recognise())
        except (self._kreuzberg.KreuzbergError, RuntimeError, ValueError) as error:
            raise Unreadable(reason(str(error))) from None

    def _ocr(self, settings: ReadSettings) -> Ocr | None:
        language = settings.options.get("ocr_language", "eng")
        wanted = settings.options.get("use_ocr", True) and Ocr.missing(language) is None
        return Ocr(self._kreuzberg, language) if wanted else None

    def _nothing_found(self, parser: str, settings: ReadSettings) -> str:
        if parser not in ("pdf", "image"):
            return "No text was found in the file."
        if not settings.options.get("use_ocr", True):
            return "No text was found on its pages: pictures of text are not read, as use_ocr is off."
        if missing := Ocr.missing(settings.options.get("ocr_language", "eng")):
            return f"No text was found: it may hold pictures of text only, and {missing}."
        return "No text was found on its pages, nor in pictures of text."

    def _too_long(self) -> Unreadable:
        return Unreadable(
            f"The file holds more text than the {self._longest_text:,} characters one document may have: split it."
        )


def _grid(cells: tables.Cells, options: Mapping[str, Any], strategy: ChunkStrategy, **metadata: str) -> list[Part]:
    if strategy == "columns":
        return [
            Part(text, metadata={**metadata, "column": name} if name else metadata, rows=True)
            for name, text in tables.columns_text(cells, options)
        ]
    return [Part(tables.rows_text(cells, options), metadata=metadata, rows=True)]


def _sheets(result: Any, settings: ReadSettings) -> Iterator[Part]:
    names = list(result.metadata.get("sheet_names") or ())
    wanted = settings.options.get("sheets")
    if wanted and not set(wanted) & set(names):
        raise Unreadable(f"The file has no sheet of the configured names; it has {', '.join(map(repr, names))[:300]}.")
    for table in result.tables:
        name = names[table.page_number - 1] if 0 < table.page_number <= len(names) else ""
        if not wanted or name in wanted:
            yield from _grid(
                table.cells, settings.options, settings.chunking.strategy, **({"sheet": name} if name else {})
            )


def _slides(content: str, mark: str) -> Iterator[Part]:
    before, *rest = re.split(re.escape(mark) + r":(\d+):", content)
    if before.strip():
        yield Part(before)
    for number, text in zip(rest[::2], rest[1::2], strict=True):
        yield Part(text.strip("\n"), int(number))


def _described(metadata: Mapping[str, Any]) -> dict[str, Any]:
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
