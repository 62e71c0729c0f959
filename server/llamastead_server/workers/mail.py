"""Mails taken apart: what they say themselves, and the files and mails they carry.

The text itself is left to the document reader; what is taken out here are attachments' names and bytes, of Internet
mail by the standard library and of Outlook's files by olefile.
"""

from __future__ import annotations

import codecs
import contextlib
import mimetypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email import message_from_binary_file
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from pathlib import Path, PurePath

from llamastead_server.domain import names
from llamastead_server.workers.formats import is_format
from llamastead_server.workers.outlook import OutlookFile, OutlookMail
from llamastead_server.workers.text_files import Unreadable

_MAIL_TYPES = ("message/rfc822", "message/global")
_OWN_TEXT = ("text/plain", "text/html")
_DEEPEST = 5


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a mail carries beside its text.

    Attributes:
        name: Its file name, safe to show; of a mail its subject, with the ending `.eml`.
        content: Gives its bytes; raises `Unreadable` when it can't.
        encoding: The encoding of its text, if the mail says so.
    """

    name: str
    content: Callable[[], bytes]
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail taken apart.

    Attributes:
        own: The mail without what it carries, or the file itself where its reader keeps them apart.
        attachments: What it carries, in order.
        pages: Its own text that is HTML and stands nowhere in plain text; `own` is without it.
    """

    own: bytes | Path
    attachments: Iterator[Attachment]
    pages: Sequence[str] = ()


@contextlib.contextmanager
def open_mail(parser: str, path: Path) -> Iterator[Mail]:
    """Takes a mail apart; its attachments can be had while the block runs."""
    if parser == "msg":
        with OutlookFile(path) as file:
            yield Mail(path, map(_outlook_attachment, file.carried()))
        return
    with path.open("rb") as file:
        message = message_from_binary_file(file)
    carried: list[Message] = []
    text = message
    if not _keeps(message, carried):
        # It is nothing but a file: what it says itself is in its headers.
        text = Message()
        for header, value in message.items():
            if not header.lower().startswith("content-"):
                text[header] = value
        text.set_payload("")
    pages = list(_pages(text))
    try:
        own: bytes | Path = _as_bytes(text)
    except Unreadable:
        own, pages = path, []  # What can't be written again can still be read.
    yield Mail(own, map(_attachment, carried), pages)


def _keeps(part: Message, carried: list[Message]) -> bool:
    """Moves what is no text of the mail itself from `part` to `carried`; tells whether `part` itself stays."""
    if part.get_content_type() in _MAIL_TYPES:
        carried.append(part)
        return False
    payload = part.get_payload()
    if isinstance(payload, list):
        if part.get_content_maintype() == "multipart":
            part.set_payload([inner for inner in payload if isinstance(inner, Message) and _keeps(inner, carried)])
        return True
    if part.get_content_disposition() == "attachment" or _filename(part) or part.get_content_type() not in _OWN_TEXT:
        carried.append(part)
        return False
    _to_utf8(part)
    return True


def _to_utf8(part: Message) -> None:
    """Its text in UTF-8: the reader of mails knows few encodings, of Chinese, Japanese and Korean none."""
    encoding = _known(part.get_content_charset())
    if encoding is not None and codecs.lookup(encoding).name not in ("utf-8", "ascii"):
        with contextlib.suppress(ValueError, LookupError):
            text = _payload(part).decode(encoding, errors="replace").encode(errors="replace")
            del part["Content-Transfer-Encoding"]
            part.set_payload(text, "utf-8")


def _pages(part: Message) -> Iterator[str]:
    """Takes out the HTML that says what no plain text beside it says: the reader of mails glues its words together."""
    if part.is_multipart():
        inner = [each for each in part.get_payload() if isinstance(each, Message)]
        if part.get_content_type() == "multipart/alternative" and any(map(_says_plainly, part.walk())):
            return
        for each in inner:
            yield from _pages(each)
    elif part.get_content_type() == "text/html":
        encoding = _known(part.get_content_charset()) or "utf-8"
        yield _payload(part).decode(encoding, errors="replace")


def _says_plainly(part: Message) -> bool:
    return part.get_content_type() == "text/plain" and bool(str(part.get_payload()).strip())


def _attachment(part: Message) -> Attachment:
    media_type, payload = part.get_content_type(), part.get_payload()
    if media_type in _MAIL_TYPES:
        inner = payload[0] if isinstance(payload, list) and payload and isinstance(payload[0], Message) else None
        name = _filename(part) or (_decoded(inner["Subject"]) if inner is not None else "")
        return Attachment(_named(name, ".eml"), lambda: _as_bytes(inner) if inner is not None else b"")
    encoding = part.get_content_charset() if part.get_content_maintype() == "text" else None
    return Attachment(
        _named(_filename(part), mimetypes.guess_extension(media_type) or ""), lambda: _payload(part), _known(encoding)
    )


def _outlook_attachment(found: OutlookMail) -> Attachment:
    if found.inner is None:
        return Attachment(_named(found.name, ""), found.content)
    return Attachment(_named(found.name, ".eml"), lambda: _internet_mail(found))


def _internet_mail(mail: OutlookMail, depth: int = 0) -> bytes:
    """A mail inside an Outlook file as one of the Internet's, so that it is read like any other."""
    assert mail.inner is not None
    message = EmailMessage()
    for header, value in mail.inner.headers.items():
        # The library raises more than ValueError for some addresses that are none.
        with contextlib.suppress(ValueError, LookupError, AttributeError, HeaderParseError):
            message[header] = " ".join(value.split())
    message.set_content(mail.inner.text)
    if not mail.inner.text and mail.inner.html:
        message.set_content(mail.inner.html, subtype="html")
    for carried in mail.inner.carried():
        content = b""
        name = _named(carried.name, "" if carried.inner is None else ".eml")
        # What can't be had, or is too deep to be read, is named all the same.
        with contextlib.suppress(Unreadable):
            if carried.inner is None:
                content = carried.content()
            elif depth < _DEEPEST:
                content = _internet_mail(carried, depth + 1)
        message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return _as_bytes(message)


def _named(name: str, ending: str) -> str:
    shown = names.file_name(name)
    if ending == ".eml":
        return (
            shown if is_format(shown) and PurePath(shown).suffix.lower() == ending else names.file_name(name + ending)
        )
    return shown if PurePath(shown).suffix else shown + ending


def _filename(part: Message) -> str:
    try:
        return _decoded(part.get_filename())
    except (ValueError, LookupError, TypeError):
        return ""


def _decoded(header: object) -> str:
    if header is None:
        return ""
    try:
        return str(make_header(decode_header(str(header)))).encode(errors="replace").decode()
    except (ValueError, LookupError):
        return str(header).encode(errors="replace").decode()


def _payload(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    # It is asked for once, and the mail may be large.
    part.set_payload("")
    return content if isinstance(content, bytes) else b""


def _known(encoding: str | None) -> str | None:
    try:
        "".encode(encoding or "utf-8")
    except (LookupError, ValueError):
        return None
    return encoding


def _as_bytes(message: Message) -> bytes:
    try:
        return message.as_bytes()
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Unreadable("The mail is damaged.") from None
