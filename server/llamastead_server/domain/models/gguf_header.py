"""What a GGUF file says of its model, read from the header without touching the weights."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 16 << 20
_LENGTH = struct.Struct("<Q")


class BadGguf(ValueError):
    """The file is not GGUF, or damaged."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata of a GGUF file.

    Attributes:
        metadata: Key to value; arrays only when they were asked for.
        parameters: Number of weights.
    """

    metadata: Mapping[str, Any]
    parameters: int

    @property
    def architecture(self) -> str:
        """For example `llama`."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained to hold."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return value if isinstance(value, int) else None


def read_header(path: Path, *, arrays: frozenset[str] = frozenset()) -> GgufHeader:
    """Reads a file's header.

    Args:
        path: The file.
        arrays: Keys of arrays to read too; others are skipped.

    Raises:
        BadGguf: It is not GGUF version 2 or 3, or is cut short.
    """
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _Reader(view).header(arrays)
        except (struct.error, ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise BadGguf(f"{path.name} is not a readable GGUF file: {error}") from None


class _Reader:
    def __init__(self, view: mmap.mmap) -> None:
        self._view = view
        self._at = 0

    def header(self, arrays: frozenset[str]) -> GgufHeader:
        magic, version = self._view[:4], struct.unpack_from("<I", self._view, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise BadGguf(f"magic {magic!r}, version {version}")
        self._at = 8
        tensors, pairs = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string()
            kind = self._number("<I")
            if kind == _ARRAY:
                values = self._array(key in arrays)
                if values is not None:
                    metadata[key] = values
            else:
                metadata[key] = self._string() if kind == _STRING else self._number(_SCALARS[kind])
        parameters = 0
        for _ in range(tensors):
            self._skip_string()
            dimensions = self._number("<I")
            parameters += math.prod(struct.unpack_from(f"<{dimensions}Q", self._view, self._at))
            self._at += 8 * dimensions + 12
        return GgufHeader(metadata, parameters)

    def _number(self, layout: str) -> Any:
        value = struct.unpack_from(layout, self._view, self._at)[0]
        self._at += struct.calcsize(layout)
        return value

    def _skip_string(self) -> None:
        length = _LENGTH.unpack_from(self._view, self._at)[0]
        if length > _LONGEST_STRING:
            raise BadGguf("a string is longer than any real one")
        self._at += 8 + length

    def _string(self) -> str:
        start = self._at + 8
        self._skip_string()
        if self._at > len(self._view):
            raise BadGguf("cut short")
        return self._view[start : self._at].decode()

    def _array(self, wanted: bool) -> list[Any] | None:
        kind, count = self._number("<I"), self._number("<Q")
        if count > len(self._view):
            raise BadGguf("an array is longer than the file")
        if kind == _STRING:
            if wanted:
                return [self._text() for _ in range(count)]
            for _ in range(count):
                self._skip_string()
            return None
        layout = _SCALARS[kind]
        size = struct.calcsize(layout)
        start = self._at
        self._at += size * count
        return list(struct.unpack_from(f"<{count}{layout[1]}", self._view, start)) if wanted else None

    def _text(self) -> str:
        start = self._at + 8
        self._skip_string()
        return self._view[start : self._at].decode(errors="replace")
