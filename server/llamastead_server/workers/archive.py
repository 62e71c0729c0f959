"""Office files before they are read: they are ZIP archives, whose entries may lie about their size."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

_MOST_ENTRIES = 20_000
_MOST_BYTES = 512 << 20
_BLOCK = 1 << 18
_LOCAL_HEADER = 30
_MOST_COPIED = 64 << 20
_TAB, _SPACE = b"<w:tab/>", b'<w:t xml:space="preserve"> </w:t>'


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


def without_tabs(path: Path) -> Path | bytes:
    """The text of a Word file with spaces for tabs: its reader drops tabs, which glues words together.

    A file that is damaged or very long is given back as it is.
    """
    copied = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copied, "w") as copy:
            parts = [entry for entry in archive.infolist() if entry.filename.endswith((".xml", ".rels"))]
            if sum(entry.file_size for entry in parts) > _MOST_COPIED:
                return path
            for part in parts:
                copy.writestr(part.filename, archive.read(part).replace(_TAB, _SPACE))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, RuntimeError, EOFError, zlib.error):
        return path
    return copied.getvalue()


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
