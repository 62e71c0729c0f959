"""Makes Outlook's .msg files: compound documents of nested storages, as small as they can be."""

from __future__ import annotations

import struct
from collections.abc import Mapping

Storage = Mapping[str, "bytes | Storage"]
_SECTOR, _SMALL, _SMALL_LIMIT = 512, 64, 4096
_FREE, _END, _TABLE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
_NOTHING = 0xFFFFFFFF


def mail(subject: str, text: str, *attachments: Storage) -> Storage:
    """A mail as a storage, for `compound` or to be an attachment's content."""
    return {
        "__properties_version1.0": bytes(32),
        "__substg1.0_0037001F": subject.encode("utf-16-le"),
        "__substg1.0_0C1A001F": "Ann Lee".encode("utf-16-le"),
        "__substg1.0_1000001F": text.encode("utf-16-le"),
        **{f"__attach_version1.0_#{number:08X}": entry for number, entry in enumerate(attachments)},
    }


def attachment(name: str, content: bytes | Storage) -> Storage:
    """A file, or a mail, that a mail carries."""
    key = "__substg1.0_37010102" if isinstance(content, bytes) else "__substg1.0_3701000D"
    return {"__properties_version1.0": bytes(8), "__substg1.0_3707001F": name.encode("utf-16-le"), key: content}


def compound(root: Storage) -> bytes:
    """The compound document (MS-CFB, version 3) with the streams and storages of `root`, of up to 7 MB.

    Of large streams that are one object in memory the bytes are there once.
    """
    entries: list[tuple[str, int, int, int, int, int]] = []  # name, kind, right, child, start, size
    small, sectors = bytearray(), list[bytes]()
    small_table, table = list[int](), list[int]()
    stored: dict[int, int] = {}

    def store(content: bytes) -> int:
        if id(content) in stored:
            return stored[id(content)]
        start, count = len(sectors), -(-len(content) // _SECTOR)
        sectors.extend(content[n * _SECTOR : (n + 1) * _SECTOR].ljust(_SECTOR, b"\0") for n in range(count))
        table.extend([*range(start + 1, start + count), _END] if count else [])
        stored[id(content)] = start if count else _END
        return stored[id(content)]

    def store_small(content: bytes) -> int:
        start, count = len(small) // _SMALL, -(-len(content) // _SMALL)
        small.extend(content.ljust(count * _SMALL, b"\0"))
        small_table.extend([*range(start + 1, start + count), _END] if count else [])
        return start if count else _END

    def add(storage: Storage) -> int:
        """Adds the entries of a storage, each the right neighbour of the one before; returns the first one."""
        named = sorted(storage.items(), key=lambda item: (len(item[0]), item[0].upper()))
        places = range(len(entries), len(entries) + len(named))
        entries.extend([("", 0, _NOTHING, _NOTHING, 0, 0)] * len(named))
        for place, (name, content) in zip(places, named, strict=True):
            right = place + 1 if place + 1 in places else _NOTHING
            if isinstance(content, bytes):
                start = (store_small if len(content) < _SMALL_LIMIT else store)(content)
                entries[place] = (name, 2, right, _NOTHING, start, len(content))
            else:
                entries[place] = (name, 1, right, add(content), 0, 0)
        return places.start if named else _NOTHING

    entries.append(("Root Entry", 5, _NOTHING, _NOTHING, 0, 0))
    child = add(root)
    of_small, of_table = bytes(small), struct.pack(f"<{len(small_table)}I", *small_table)
    entries[0] = ("Root Entry", 5, _NOTHING, child, store(of_small), len(small))
    small_start, small_sectors = store(of_table), -(-len(of_table) // _SECTOR)
    listed = b"".join(_entry(*entry) for entry in entries)
    directory = store(listed)
    per_sector = _SECTOR // 4
    tables = 1
    while tables * per_sector < len(sectors) + tables:
        tables += 1
    first = len(sectors)
    table.extend([_TABLE] * tables)
    table.extend([_FREE] * (tables * per_sector - len(table)))
    header = struct.pack(
        "<8s16xHHHHH6xIIIIIIIII",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0x3E, 3, 0xFFFE, 9, 6,
        0, tables, directory, 0, _SMALL_LIMIT, small_start, small_sectors, _END, 0,
    )  # fmt: skip
    places = [*range(first, first + tables), *[_FREE] * (109 - tables)]
    return header + struct.pack("<109I", *places) + b"".join(sectors) + struct.pack(f"<{len(table)}I", *table)


def _entry(name: str, kind: int, right: int, child: int, start: int, size: int) -> bytes:
    encoded = name.encode("utf-16-le") + b"\0\0" if name else b""
    # All black: a list is a tree of them, if not a balanced one.
    return struct.pack("<64sHBBIII16xI8x8xIQ", encoded, len(encoded), kind, 1, _NOTHING, right, child, 0, start, size)
