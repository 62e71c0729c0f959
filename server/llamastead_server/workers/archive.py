"""Office files before they are read: they are ZIP archives, whose entries may lie about their size."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

_MOST_ENTRIES = 20_000
_MOST_BYTES = 512 << 20
_BLOCK = 1 << 18
_LOCAL_HEADER = 30
_MOST_COPIED = 64 << 20
_BOX = re.compile(rb"<(mc:AlternateContent|w:pict)\b(?:(?!<\1\b).)*?</\1>", re.DOTALL)
_BOX_TEXT = re.compile(rb"<w:txbxContent>(.*?)</w:txbxContent>", re.DOTALL)
_LINES = re.compile(rb"<w:t(?: [^>]*)?>[^<]*</w:t>|<w:(?:br|tab)/>|</w:p>")
_ODT_SPANS = re.compile(rb"</?text:span\b[^>]*>")


class Bomb(Exception):
    """The archive expands to more than a document should."""


def check(path: Path) -> None:
    """Expands every entry once without keeping it; a file that is no archive passes, its reader will say so.

    Raises:
        Bomb: There are too many entries, too many bytes, or more bytes than an entry says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return
    if len(entries) > _MOST_ENTRIES or sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise Bomb
    with path.open("rb") as file:
        for entry in entries:
            if entry.compress_type == zipfile.ZIP_DEFLATED:
                _expand(file, entry)


def readable(path: Path, parser: str) -> Path | bytes:
    """The text of a Word or OpenDocument file without what makes its reader lose words or glue them together.

    Another file, and one that is damaged or very long, is given back as it is.
    """
    rewrite = _REWRITES.get(parser)
    if rewrite is None:
        return path
    copied = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copied, "w") as copy:
            parts = [entry for entry in archive.infolist() if entry.filename.endswith((".xml", ".rels", "mimetype"))]
            if sum(entry.file_size for entry in parts) > _MOST_COPIED:
                return path
            for part in parts:
                copy.writestr(part.filename, rewrite(archive.read(part)))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, RuntimeError, EOFError, zlib.error):
        return path
    return copied.getvalue()


def _word(part: bytes) -> bytes:
    """Tabs as spaces, hyphens that hold lines together as such, and text boxes as lines of the paragraph they hang on.

    Its reader drops the former, and what a paragraph says before its text box.
    """
    part = part.replace(b"<w:tab/>", b'<w:t xml:space="preserve"> </w:t>')
    return _BOX.sub(_box_lines, part.replace(b"<w:noBreakHyphen/>", b"<w:t>-</w:t>"))


def _box_lines(box: re.Match[bytes]) -> bytes:
    drawn, _, fallback = box[0].partition(b"<mc:Fallback")
    texts = _BOX_TEXT.findall(drawn) or _BOX_TEXT.findall(fallback)
    if not texts:
        return box[0]
    lines = b"".join(b"<w:br/>" if found[0] == b"</w:p>" else found[0] for found in _LINES.finditer(b"".join(texts)))
    return b"<w:br/>" + lines


def _open_text(part: bytes) -> bytes:
    """Without spans, whose reader drops those in others, and with a space between the paragraphs of a cell."""
    return _ODT_SPANS.sub(b"", part).replace(b"</text:p>", b" </text:p>")


_REWRITES: Mapping[str, Callable[[bytes], bytes]] = {"docx": _word, "odt": _open_text}


def _expand(file: BinaryIO, entry: zipfile.ZipInfo) -> None:
    # `zipfile` itself stops at the size the entry states, so it would never see the lie.
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER:
        return
    name, extra = struct.unpack("<HH", header[26:30])
    file.seek(name + extra, 1)
    expander = zlib.decompressobj(-zlib.MAX_WBITS)
    left, size = entry.compress_size, 0
    while not expander.eof:
        block = expander.unconsumed_tail
        if not block:
            block = file.read(min(_BLOCK, left))
            left -= len(block)
            if not block:
                return
        try:
            size += len(expander.decompress(block, _BLOCK))
        except zlib.error:
            return
        if size > entry.file_size:
            raise Bomb
