"""Reads one uploaded file from a multipart/form-data body as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from llamastead_server.domain.errors import InvalidRequest, UnsupportedMediaType, ValidationFailed

_LONGEST_BOUNDARY = 200
_MOST_PARTS = 100
_LONGEST_VALUE = 1024


@dataclass(frozen=True, slots=True)
class FilePart:
    """The part that carries the file: its name, its media type and its content as it comes."""

    filename: str
    content_type: str | None
    content: AsyncIterator[bytes]


class MultipartBody:
    """A multipart/form-data body with one file.

    Attributes:
        values: Values of the short fields that have come by now.

    Args:
        content_type: The request's Content-Type, boundary included.
        body: The body's bytes as they come.
        field: Name of the part that carries the file.
        fields: Names of short text fields to keep; others are skipped.

    Raises:
        UnsupportedMediaType: The body is something else.
        InvalidRequest: The boundary is missing.
    """

    def __init__(
        self, content_type: str, body: AsyncIterator[bytes], field: str = "file", fields: Sequence[str] = ()
    ) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            shown = content_type.split(";")[0][:100] or "none"
            raise UnsupportedMediaType(
                f"The content type is {shown!r}: send a form (multipart/form-data), as `curl -F file=@paper.pdf` does."
            )
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= _LONGEST_BOUNDARY:
            raise InvalidRequest("The content type multipart/form-data has no usable boundary.")
        self._body = body
        self.values: dict[str, str] = {}
        self._fields = frozenset(name.encode() for name in fields)
        self._value: tuple[str, bytearray] | None = None
        self._field = field.encode()
        self._headers: dict[bytes, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._parts = 0
        self._file: tuple[str, str | None] | None = None
        self._in_file = False
        self._pending: list[bytes] = []
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def file(self) -> FilePart:
        """Reads up to the file's content.

        Raises:
            ValidationFailed: There is no such part.
            InvalidRequest: The body is malformed; the content's iterator raises it too.
        """
        while self._file is None and await self._feed():
            pass
        if self._file is None:
            self._require_complete()
            name = self._field.decode()
            raise ValidationFailed(
                f"The form has no file in the field {name!r}: send it as `curl -F {name}=@paper.pdf` does.",
                details={name: "Field required"},
            )
        return FilePart(*self._file, self._content())

    async def _content(self) -> AsyncIterator[bytes]:
        while True:
            pending, self._pending = self._pending, []
            if pending:
                yield b"".join(pending)
            elif not await self._feed():
                break
        self._require_complete()

    async def _feed(self) -> bool:
        try:
            data = await anext(self._body)
        except StopAsyncIteration:
            return False
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"The multipart body is malformed: {error}.") from None
        return True

    def _require_complete(self) -> None:
        if not self._complete:
            raise InvalidRequest("The multipart body ends before its last boundary: the upload was cut off.")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidRequest(f"The form has more than {_MOST_PARTS} parts.")
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"")
        if name in self._fields and b"filename" not in options:
            self._value = name.decode(), bytearray()
        if name != self._field:
            return
        if b"filename" not in options:
            shown = self._field.decode()
            raise ValidationFailed(
                f"The field {shown!r} is not a file: send it as `curl -F {shown}=@paper.pdf` does.",
                details={shown: "Expected a file"},
            )
        if self._file is not None:
            raise InvalidRequest("The form has two files: send one per request.")
        content_type = self._headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip()
        self._file = (_unescaped(options[b"filename"].decode(errors="replace")), content_type or None)
        self._in_file = True

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pending.append(data[start:end])
        elif self._value is not None:
            self._value[1].extend(data[start:end])
            if len(self._value[1]) > _LONGEST_VALUE:
                raise InvalidRequest(f"The field {self._value[0]!r} is longer than {_LONGEST_VALUE} bytes.")

    def _on_part_end(self) -> None:
        self._in_file = False
        if self._value is not None:
            self.values[self._value[0]] = self._value[1].decode(errors="replace")
            self._value = None

    def _on_end(self) -> None:
        self._complete = True


def _unescaped(filename: str) -> str:
    """Undoes what browsers and curl do to a name that would break the header (WHATWG, multipart/form-data)."""
    return filename.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
