"""Text as files hold it, and what is said of files whose text can't be had."""

from __future__ import annotations

import codecs
import contextlib
import re
import unicodedata

from llamastead_server.domain.datasets.reading import ReadSettings

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
# By pages and XML.
_SAID_ENCODING = re.compile(rb"""<(?:meta|\?xml)\b[^>]*?(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)


class Unreadable(Exception):
    """The document can't be read; the message is for the person who uploaded it."""


def decoded(content: bytes, filename: str, settings: ReadSettings) -> str:
    """The text of a file in the configured encoding, else UTF-8, marked UTF-16, what it says, or Windows-1252."""
    encoding = settings.options.get("encoding", "utf-8")
    if codecs.lookup(encoding).name != "utf-8":
        text = content.decode(encoding, errors="replace")
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        for signature, kind in _SIGNATURES:
            if content.startswith(signature):
                raise Unreadable(f"The content is that of a {kind}, which the name {filename!r} does not say.")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = _decoded_as_it_says(content)
    sample = text[:65536]
    # Not all that is unprintable: joiners and marks of direction are part of Persian, Hebrew and emoji.
    strange = sum((unicodedata.category(letter) == "Cc" and not letter.isspace()) or letter == "�" for letter in sample)
    if strange > len(sample) // 50:
        raise Unreadable("The content is not text, and its kind is not one that can be read.")
    return text


def _decoded_as_it_says(content: bytes) -> str:
    said = _SAID_ENCODING.search(content[:2048])
    if said is not None:
        with contextlib.suppress(LookupError, ValueError):  # Not an encoding, or none of texts.
            return content.decode(said[1].decode(), errors="replace")
    return content.decode("cp1252", errors="replace")


def unwrapped(text: str) -> str:
    """A PDF's lines joined where a sentence runs on."""
    lines = text.replace("\r\n", "\n").split("\n")
    joined = lines[:1]
    for line in lines[1:]:
        if line[:1].islower() and joined[-1].strip():
            joined[-1] = f"{joined[-1].rstrip()} {line}"
        else:
            joined.append(line)
    return "\n".join(joined)


def reason(message: str) -> str:
    """kreuzberg's message in words a user understands."""
    lowered = message.lower()
    if "password" in lowered or "encrypted" in lowered:
        return "The file is protected by a password: remove the protection and upload it again."
    if "security" in lowered or "limit" in lowered or "bomb" in lowered:
        return "The file expands to far more data than a document should and was refused."
    if "memory" in lowered:
        return "Reading the file takes more memory than one document may use."
    first = message.splitlines()[0][:200] if message else "no details"
    return f"The file is damaged or not what its name says. ({first})"
