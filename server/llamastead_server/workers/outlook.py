"""Outlook's mail files: compound documents whose storages are attachments and whose streams are properties."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import olefile

from llamastead_server.workers.text_files import Unreadable

_ATTACHMENT = "__attach_version1.0_"
_PROPERTIES = "__properties_version1.0"
_DATA, _EMBEDDED = "__substg1.0_37010102", "__substg1.0_3701000D"
_NAMES = ("3707", "3001", "3704")  # its long name, the one that is shown, the short one
_SUBJECT, _SENDER, _SENDER_ADDRESS, _TO, _TEXT, _HTML = "0037", "0C1A", "0C1F", "0E04", "1000", "1013"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class InnerMail:
    """A mail inside an Outlook file.

    Attributes:
        headers: Its `Subject`, `From` and `To`, where it has them.
        text: Its plain text.
        html: Its text as HTML.
        carried: What it carries itself.
    """

    headers: Mapping[str, str]
    text: str
    html: str
    carried: Callable[[], Iterator[OutlookMail]]


@dataclass(frozen=True, slots=True)
class OutlookMail:
    """A file or a mail that an Outlook file carries.

    Attributes:
        name: Name of the file, subject of the mail.
        content: Gives the bytes of a file; raises `Unreadable` when it can't.
        inner: The mail, if it is one.
    """

    name: str
    content: Callable[[], bytes]
    inner: InnerMail | None = None


class OutlookFile:
    """An open Outlook mail file.

    A file that is no compound document carries nothing: whoever reads its text says what is wrong with it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: olefile.OleFileIO | None = None
        # Streams may share their bytes, so that a small file carries far more than it holds.
        self._left = _MOST_BYTES

    def __enter__(self) -> OutlookFile:
        try:
            self._file = olefile.OleFileIO(self._path)
        except Exception:
            self._file = None  # olefile raises whatever the file's bytes lead it to.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def carried(self, storage: tuple[str, ...] = ()) -> Iterator[OutlookMail]:
        """What the mail carries, or a mail inside it, in order."""
        if self._file is None:
            return
        folders = {
            tuple(entry[: len(storage) + 1])
            for entry in self._file.listdir(streams=True, storages=True)
            if tuple(entry[: len(storage)]) == storage
            and len(entry) > len(storage)
            and entry[len(storage)].startswith(_ATTACHMENT)
        }
        for folder in sorted(folders):
            yield self._carried(folder)

    def _carried(self, folder: tuple[str, ...]) -> OutlookMail:
        inner = (*folder, _EMBEDDED)
        name = next((found for code in _NAMES if (found := self._text(folder, code))), "")
        if self._has((*inner, _PROPERTIES)):
            headers = {
                "Subject": self._text(inner, _SUBJECT),
                "From": self._text(inner, _SENDER) or self._text(inner, _SENDER_ADDRESS),
                "To": self._text(inner, _TO),
            }
            return OutlookMail(
                headers["Subject"] or name,
                lambda: b"",
                InnerMail(
                    {header: value for header, value in headers.items() if value},
                    self._text(inner, _TEXT),
                    self._text(inner, _HTML),
                    lambda: self.carried(inner),
                ),
            )
        return OutlookMail(name, lambda: self._read((*folder, _DATA)))

    def _has(self, path: tuple[str, ...]) -> bool:
        assert self._file is not None
        return bool(self._file.exists(list(path)))

    def _text(self, storage: tuple[str, ...], code: str) -> str:
        for kind, encoding in (("001F", "utf-16-le"), ("001E", "utf-8"), ("0102", "utf-8")):
            path = (*storage, f"__substg1.0_{code}{kind}")
            if self._has(path):
                try:
                    content = self._read(path)
                    return content.decode(encoding).rstrip("\0")
                except UnicodeDecodeError:
                    return codecs.decode(content, "cp1252", "replace").rstrip("\0")
                except Unreadable:
                    return ""
        return ""

    def _read(self, path: tuple[str, ...]) -> bytes:
        assert self._file is not None
        if not self._has(path):
            raise Unreadable("It is an object inside the mail, or a link, and not a file.")
        try:
            size = int(self._file.get_size(list(path)))
            if size > self._left:
                raise Unreadable("The mail's attachments are larger than what one mail may carry.")
            self._left -= size
            with self._file.openstream(list(path)) as stream:
                return bytes(stream.read(size))
        except Unreadable:
            raise
        except Exception:
            raise Unreadable("It is damaged.") from None  # olefile raises whatever the bytes lead it to.
