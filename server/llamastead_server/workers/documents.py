"""Turns a file into text: sections that know their page, and what is worth knowing beside the text."""

from __future__ import annotations

import csv
import math
import re
import secrets
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.workers import archive, tables
from llamastead_server.workers.attachments import Room, read_attachments
from llamastead_server.workers.formats import ARCHIVES, GRIDS, MAILS, TEXT, format_of
from llamastead_server.workers.grids import grid, sheets
from llamastead_server.workers.mail import open_mail
from llamastead_server.workers.markdown import headings, split_sections, without_code
from llamastead_server.workers.ocr import Ocr
from llamastead_server.workers.reading import Part, Reading, described
from llamastead_server.workers.text_files import Unreadable, decoded, reason, unwrapped

_MOST_PAGES = 20_000
# Some pages are one form as a whole.
_HTML = {"strip_tags": ["title", "meta", "img", "svg"], "preprocessing": {"remove_forms": False}}
_INLINE_FILE = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")
_PADDING = re.compile(r"(?<! ) +(?= \|)|(?<=-{3})-+")
"""What fills the columns of a table; a run is tried from its start only, so that long ones take no time."""


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

    def read(
        self,
        path: Path,
        filename: str,
        settings: ReadSettings,
        *,
        outline: bool = False,
        attachment_seconds: float = math.inf,
    ) -> Reading:
        """Reads a file.

        Args:
            path: The file.
            filename: Its name, which tells its kind.
            settings: How it is read.
            outline: Whether its headings are wanted.
            attachment_seconds: Time after which no further attachment of a mail is read.

        Raises:
            Unreadable: Says why.
        """
        room = Room(self._longest_text, until=time.monotonic() + attachment_seconds)
        return self._read(path, filename, settings, outline, room)

    def _read(self, path: Path, filename: str, settings: ReadSettings, outline: bool, room: Room) -> Reading:
        size = path.stat().st_size
        if size == 0:
            raise Unreadable("The file is empty.")
        parser, media_type = format_of(settings, filename)
        if parser in TEXT:
            if size > 4 * self._longest_text:
                raise self._too_long()
            reading = self._read_text(parser, decoded(path.read_bytes(), filename, settings), settings, outline)
        elif parser in MAILS:
            return self._read_mail(parser, path, media_type, settings, outline, room)
        elif parser == "image":
            reading = Reading(parser, [Part(self._picture(path, media_type, settings))])
        else:
            if parser in ARCHIVES:
                try:
                    archive.check(path)
                except archive.Bomb:
                    raise Unreadable(reason("bomb")) from None
            reading = self._read_binary(parser, path, media_type, settings, outline)
        self._measure(reading, room)
        return self._judged(reading, settings)

    def _read_mail(
        self, parser: str, path: Path, media_type: str, settings: ReadSettings, outline: bool, room: Room
    ) -> Reading:
        with open_mail(parser, path) as mail:
            reading = self._reading(parser, self._extract(mail.own, media_type))
            reading.parts = [Part("\n\n".join([reading.parts[0].text, *map(self._page, mail.pages)]))]
            self._measure(reading, room)
            if settings.options.get("extract_attachments", True):
                read_attachments(reading, mail.attachments, settings, outline, room, self._read)
        return self._judged(reading, settings)

    def _measure(self, reading: Reading, room: Room) -> None:
        if not room.take_text(sum(len(part.text) for part in reading.parts)):
            raise self._too_long()

    def _judged(self, reading: Reading, settings: ReadSettings) -> Reading:
        if not settings.options.get("extract_metadata", True):
            reading.metadata = {}
        if not any(part.text.strip() for part in reading.parts):
            raise Unreadable(self._nothing_found(reading.parser, settings))
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
            return Reading(parser, grid(cells, options, strategy), tables=[(None, cells)])
        if parser == "text":
            if options.get("clean_text"):
                text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]+\n", "\n", re.sub(r"[^\S\n]{2,}", " ", text)))
            return Reading(parser, [Part(text)], headings=headings(text) if outline else [])
        if parser == "html":
            return self._read_html(text, outline)
        reading = self._reading(parser, self._extract(text.encode(), "text/markdown"))
        if options.get("extract_code_blocks", True) is False:
            text = without_code(text)
        text = _INLINE_FILE.sub("", text)
        # As it stands: the library leaves out what has items or blocks of its own, such as an item with a list in it.
        reading.parts = [Part(text)]
        reading.headings = headings(text)
        if strategy in ("sections", "headings"):
            reading.parts = [
                Part(body, metadata={"section": trail} if trail else {}) for trail, body in split_sections(text)
            ]
        return reading

    def _read_html(self, page: str, outline: bool) -> Reading:
        # Read twice: what keeps the head out of the text takes its facts, and the links, away too.
        reading = self._reading("html", self._extract(page.encode(), "text/html"))
        reading.metadata = {
            key: unescape(value) if isinstance(value, str) else value for key, value in reading.metadata.items()
        }
        text = self._page(page)
        reading.parts = [Part(text)]
        if outline:
            reading.headings = headings(text)
        return reading

    def _page(self, page: str) -> str:
        """The text of a page, as Markdown: the plain text that the library makes lacks all that is in no paragraph."""
        options = {"output_format": "markdown", "html_options": _HTML}
        return _PADDING.sub("", self._extract(page.encode(), "text/html", **options).content)

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
        source = archive.readable(path, parser)
        result = self._extract(source, media_type, **extra)
        reading = self._reading(parser, result)
        if parser == "pdf":
            reading.parts = self._pdf_parts(path, result, settings)
        elif parser == "pptx":
            reading.parts = list(_slides(result.content, self._slide_mark))
        elif parser in GRIDS:
            reading.parts = list(sheets(result, settings))
        if outline:
            reading.headings = headings(self._extract(source, media_type, output_format="markdown").content)
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
        # What mails and archives hold is not for it to read: it knows nothing of the limits here.
        config.max_archive_depth = 0
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
            described(result.metadata),
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


def _slides(content: str, mark: str) -> Iterator[Part]:
    before, *rest = re.split(re.escape(mark) + r":(\d+):", content)
    if before.strip():
        yield Part(before)
    for number, text in zip(rest[::2], rest[1::2], strict=True):
        yield Part(text.strip("\n"), int(number))
