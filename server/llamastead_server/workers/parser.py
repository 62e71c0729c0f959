"""The parser child: reads one document after another and cuts each into chunks.

Runs with an address space limit; its parent kills it when a document takes too long. It speaks frames (four
bytes of length, then JSON) over the socket whose descriptor it is started with.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamastead_server.domain.chunking import ChunkSettings, spans
from llamastead_server.workers.child import configure_logging, die_with_parent, give_way

HEADER = struct.Struct("!I")
_PIECES_PER_FRAME = 256
# kreuzberg's own name for each kind of file it is trusted with here. Source code is not among them: for that it
# would download grammars.
_FORMATS: Mapping[str, tuple[str, str]] = {
    "pdf": ("pdf", "application/pdf"),
    "docx": ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    "pptx": ("pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    "xlsx": ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    "odt": ("odt", "application/vnd.oasis.opendocument.text"),
    "ods": ("ods", "application/vnd.oasis.opendocument.spreadsheet"),
    "epub": ("epub", "application/epub+zip"),
    "rtf": ("rtf", "application/rtf"),
    "msg": ("msg", "application/vnd.ms-outlook"),
    "eml": ("eml", "message/rfc822"),
    "html": ("html", "text/html"),
    "htm": ("html", "text/html"),
    "md": ("markdown", "text/markdown"),
    "markdown": ("markdown", "text/markdown"),
    "csv": ("csv", "text/csv"),
    "tsv": ("csv", "text/tab-separated-values"),
}
_TEXT = frozenset({"html", "markdown", "csv"})
_SIGNATURES = (
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\xd0\xcf\x11\xe0", "old Microsoft Office file"),
    (b"\x89PNG", "picture"),
    (b"\xff\xd8\xff", "picture"),
    (b"GIF8", "picture"),
    (b"\x7fELF", "program"),
    (b"MZ", "program"),
    (b"\x1f\x8b", "compressed file"),
)


class Unreadable(Exception):
    """The document can't be read; the message is for the person who uploaded it."""


class Reader:
    """Turns a file into text by page, document metadata and the name of the parser.

    Args:
        longest_text: Most characters one document may hold.
    """

    def __init__(self, longest_text: int) -> None:
        import kreuzberg

        self._kreuzberg = kreuzberg
        self._longest_text = longest_text
        self._config = kreuzberg.ExtractionConfig(  # type: ignore[call-arg]  # its stub lacks disable_ocr
            use_cache=False,
            disable_ocr=True,
            output_format="plain",
            pages=kreuzberg.PageConfig(extract_pages=True),
            concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
        )

    def read(self, path: Path, filename: str) -> tuple[str, Sequence[tuple[int | None, str]], dict[str, Any]]:
        """Returns the parser's name, the pages (number or `None`, text) and the metadata.

        Raises:
            Unreadable: Says why.
        """
        size = path.stat().st_size
        if size == 0:
            raise Unreadable("The file is empty.")
        parser, media_type = _FORMATS.get(Path(filename).suffix.lower().lstrip("."), ("text", "text/plain"))
        if parser == "text" or parser in _TEXT:
            if size > 4 * self._longest_text:
                raise self._too_long()
            text = _decoded(path.read_bytes(), filename)
            if len(text) > self._longest_text:
                raise self._too_long()
            if parser == "text":
                return parser, [(None, text)], {}
            pages, metadata = self._extract(
                lambda: self._kreuzberg.extract_bytes_sync(text.encode(), media_type, self._config)
            )
        else:
            pages, metadata = self._extract(lambda: self._kreuzberg.extract_file_sync(path, media_type, self._config))
        if sum(len(text) for _, text in pages) > self._longest_text:
            raise self._too_long()
        if parser == "pdf":
            pages = [(number, _unwrapped(text)) for number, text in pages]
        return parser, pages, metadata

    def _extract(self, extract: Callable[[], Any]) -> tuple[list[tuple[int | None, str]], dict[str, Any]]:
        try:
            result = extract()
        except self._kreuzberg.KreuzbergError as error:
            raise Unreadable(_reason(str(error))) from None
        # A PDF's whole text repeats its tables at the end; its pages don't. Slides and sheets come without text.
        pages: list[tuple[int | None, str]] = [
            (int(page["page_number"]), str(page["content"]))
            for page in result.pages or ()
            if result.mime_type == "application/pdf"
        ]
        return pages or [(None, result.content)], _described(result.metadata)

    def _too_long(self) -> Unreadable:
        return Unreadable(
            f"The file holds more text than the {self._longest_text:,} characters one document may have: split it."
        )


def answer(reader: Reader, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the frames that answer one request: a header, then the pieces; or an error."""
    try:
        settings = ChunkSettings(request["chunk_size"], request["chunk_overlap"])
        parser, pages, metadata = reader.read(Path(request["path"]), request["filename"])
        pieces = [
            (page, text[start:end])
            for page, text in ((page, text.replace("\x00", "").replace("\r\n", "\n")) for page, text in pages)
            for start, end in spans(text, settings)
        ]
        if not pieces:
            raise Unreadable(
                "No text was found on its pages: it may hold pictures of text only, which are not read."
                if parser == "pdf"
                else "No text was found in the file."
            )
    except Unreadable as error:
        yield {"error": str(error)}
        return
    except MemoryError:
        yield {"error": "Reading the file takes more memory than one document may use."}
        return
    except RecursionError:
        yield {"error": "The file is nested too deeply."}
        return
    yield {"parser": parser, "metadata": metadata, "pieces": len(pieces)}
    for start in range(0, len(pieces), _PIECES_PER_FRAME):
        yield {"pieces": pieces[start : start + _PIECES_PER_FRAME]}


def main() -> None:
    """Serves requests until the socket closes."""
    options = argparse.ArgumentParser()
    options.add_argument("--socket-fd", type=int, required=True)
    options.add_argument("--memory", type=int, required=True)
    options.add_argument("--longest-text", type=int, required=True)
    given = options.parse_args()
    die_with_parent()
    give_way(10)
    configure_logging()
    resource.setrlimit(resource.RLIMIT_AS, (given.memory, given.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = Reader(given.longest_text)
    with socket.socket(fileno=given.socket_fd) as connection, connection.makefile("rwb") as stream:
        while header := stream.read(HEADER.size):
            request = json.loads(stream.read(HEADER.unpack(header)[0]))
            for frame in answer(reader, request):
                body = json.dumps(frame, ensure_ascii=True).encode()
                stream.write(HEADER.pack(len(body)) + body)
            stream.flush()


def _decoded(content: bytes, filename: str) -> str:
    """The text of a file in UTF-8, UTF-16 with its mark, or else Windows-1252."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        for signature, kind in _SIGNATURES:
            if content.startswith(signature):
                raise Unreadable(f"The content is that of a {kind}, which the name {filename!r} does not say.")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252", errors="replace")
    sample = text[:65536]
    unprintable = sum(not (letter.isprintable() or letter.isspace()) or letter == "\ufffd" for letter in sample)
    if unprintable > len(sample) // 50:
        raise Unreadable("The content is not text, and its kind is not one that can be read.")
    return text


def _unwrapped(text: str) -> str:
    """A PDF's lines joined where a sentence runs on."""
    lines = text.replace("\r\n", "\n").split("\n")
    joined = lines[:1]
    for line in lines[1:]:
        if line[:1].islower() and joined[-1].strip():
            joined[-1] = f"{joined[-1].rstrip()} {line}"
        else:
            joined.append(line)
    return "\n".join(joined)


def _described(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth knowing of a document beside its text."""
    known = {
        "title": metadata.get("title") or metadata.get("subject"),
        "authors": [str(author)[:200] for author in metadata.get("authors") or ()][:20],
        "created_at": metadata.get("created_at"),
        "page_count": metadata.get("page_count"),
    }
    return {key: value[:500] if isinstance(value, str) else value for key, value in known.items() if value}


def _reason(message: str) -> str:
    """kreuzberg's message in words a user understands."""
    lowered = message.lower()
    if "password" in lowered or "encrypted" in lowered:
        return "The file is protected by a password: remove the protection and upload it again."
    if "security" in lowered or "limit" in lowered or "bomb" in lowered:
        return "The file expands to far more data than a document should and was refused."
    if "memory" in lowered:
        return "Reading the file takes more memory than one document may use."
    return (
        f"The file is damaged or not what its name says. ({message.splitlines()[0][:200] if message else 'no details'})"
    )


if __name__ == "__main__":
    main()
