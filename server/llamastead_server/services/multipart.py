"""Reads uploaded files from a multipart/form-data body as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from llamastead_server.domain.errors import InvalidRequest, UnsupportedMediaType, ValidationFailed

_LONGEST_BOUNDARY = 200
_MOST_PARTS = 100
_LONGEST_VALUE = 10 * 1024


class MalformedBody(InvalidRequest):
    """The body can't be read to its end."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """The part that carries the file: its name, its media type and its content as it comes."""

    filename: str
    content_type: str | None
    content: AsyncIterator[bytes]


class MultipartBody:
    """A multipart/form-data body.

    Args:
        content_type: The request's Content-Type, boundary included.
        body: The body's bytes as they come.
        field: Name of the parts that carry files.
        fields: Names of parts whose value is kept, up to 10 KB; other parts are skipped.
        most_parts: Parts the body may have.

    Raises:
        UnsupportedMediaType: The body is something else.
        InvalidRequest: The boundary is missing.
    """

    def __init__(
        self,
        content_type: str,
        body: AsyncIterator[bytes],
        field: str = "file",
        *,
        fields: Collection[str] = (),
        most_parts: int = _MOST_PARTS,
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
        self._field = field.encode()
        self._headers: dict[bytes, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._parts = 0
        self._most_parts = most_parts
        self._values: dict[str, bytearray] = {name: bytearray() for name in fields}
        self._seen: set[str] = set()
        self._value: str | None = None
        self._in_file = False
        self._file_count = 0
        # What the parser found and nobody has taken yet: a file's beginning, its bytes, `None` for its end.
        self._found: deque[tuple[str, str | None] | bytes | None] = deque()
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
        """Reads up to the content of the only file.

        Raises:
            ValidationFailed: There is no such part.
            InvalidRequest: The body is malformed or has a second file; the content's iterator raises it too.
        """
        file = await self.next_file()
        self.require_file()
        assert file is not None
        return FilePart(file.filename, file.content_type, self._only(file.content))

    async def next_file(self) -> FilePart | None:
        """Passes over what is left of a file and reads up to the content of the next; `None` at the body's end.

        Raises:
            MalformedBody: The body is malformed; the content's iterator raises it too.
        """
        while True:
            while self._found:
                found = self._found.popleft()
                if isinstance(found, tuple):
                    return FilePart(*found, self._content())
            if not await self._feed():
                self._require_complete()
                return None

    def value(self, name: str) -> str | None:
        """The value of a kept field; `None` when no such part has come so far."""
        return self._values[name].decode(errors="replace") if name in self._seen else None

    def require_file(self) -> None:
        """Raises `ValidationFailed` when no file has come."""
        if not self._file_count:
            name = self._field.decode()
            raise ValidationFailed(
                f"There is no file in the field {name!r}: send it as `curl -F {name}=@paper.pdf` does.",
                details={name: "Field required"},
            )

    async def _only(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in content:
            yield data
        if await self.next_file() is not None:
            raise MalformedBody("The form has two files: send one per request.")

    async def _content(self) -> AsyncIterator[bytes]:
        while True:
            pending: list[bytes] = []
            ended = False
            while self._found and not ended:
                found = self._found.popleft()
                if isinstance(found, bytes):
                    pending.append(found)
                else:
                    ended = True
            if pending:
                yield b"".join(pending)
            if ended:
                return
            if not self._found and not await self._feed():
                self._require_complete()
                return

    async def _feed(self) -> bool:
        try:
            data = await anext(self._body)
        except StopAsyncIteration:
            return False
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedBody(f"The multipart body is malformed: {error}.") from None
        return True

    def _require_complete(self) -> None:
        if not self._complete:
            raise MalformedBody("The multipart body ends before its last boundary: the upload was cut off.")

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._most_parts:
            raise MalformedBody(f"The form has more than {self._most_parts} parts.")
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
        if name != self._field:
            shown = name.decode(errors="replace")
            if shown in self._values:
                self._value = shown
                self._seen.add(shown)
            return
        if b"filename" not in options:
            shown = self._field.decode()
            raise ValidationFailed(
                f"The field {shown!r} is not a file: send it as `curl -F {shown}=@paper.pdf` does.",
                details={shown: "Expected a file"},
            )
        content_type = self._headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip()
        self._found.append((_unescaped(options[b"filename"].decode(errors="replace")), content_type or None))
        self._file_count += 1
        self._in_file = True

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._found.append(data[start:end])
        elif self._value is not None:
            value = self._values[self._value]
            value += data[start:end]
            if len(value) > _LONGEST_VALUE:
                raise MalformedBody(f"The field {self._value!r} is longer than {_LONGEST_VALUE} bytes.")

    def _on_part_end(self) -> None:
        if self._in_file:
            self._found.append(None)
        self._in_file = False
        self._value = None

    def _on_end(self) -> None:
        self._complete = True


def _unescaped(filename: str) -> str:
    """Undoes what browsers and curl do to a name that would break the header (WHATWG, multipart/form-data)."""
    return filename.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
