"""What mails carry beside their text: each attachment is read like any other file, within the mail's limits.

An attachment that can't be read is named with the reason; it never fails its mail.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.workers.mail import Attachment
from llamastead_server.workers.reading import Part, Reading
from llamastead_server.workers.text_files import Unreadable

_MOST_ATTACHMENTS = 200
_MOST_BYTES = 512 << 20
_DEEPEST = 3
_PASSED_ON = ("use_ocr", "ocr_language", "extract_metadata", "include_attachment_content")


@dataclass(slots=True)
class Room:
    """What a document may still hold: a mail and all that it carries count as one.

    Attributes:
        characters: Text.
        attachments: Attachments, at any depth.
        size: Bytes of attachments.
        depth: How many mails are around what is read.
        until: When no further attachment is begun, by the monotonic clock.
    """

    characters: int
    attachments: int = _MOST_ATTACHMENTS
    size: int = _MOST_BYTES
    depth: int = 0
    until: float = math.inf

    def take_text(self, characters: int) -> bool:
        """Takes room for text, if there is enough."""
        if characters > self.characters:
            return False
        self.characters -= characters
        return True

    def take_content(self, content: bytes) -> None:
        """Takes room for an attachment's content; raises `Unreadable` when there is not enough."""
        if len(content) > self.size:
            raise Unreadable("The mail's attachments are larger than what one mail may carry.")
        self.size -= len(content)

    @contextlib.contextmanager
    def deeper(self) -> Iterator[None]:
        """While an attachment is read; raises `Unreadable` where mails are nested too deeply, or when time is up."""
        if time.monotonic() > self.until:
            raise Unreadable("The mail's other attachments took the time that one document may take.")
        if self.depth == _DEEPEST:
            raise Unreadable(f"It is nested in more than {_DEEPEST} mails.")
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


Read = Callable[[Path, str, ReadSettings, bool, Room], Reading]
"""Reads one file: path, name, settings, whether headings are wanted, room."""


def read_attachments(
    mail: Reading, attachments: Iterator[Attachment], settings: ReadSettings, outline: bool, room: Room, read: Read
) -> None:
    """Reads a mail's attachments into what is known of it.

    Args:
        mail: The mail, with its own text.
        attachments: What it carries.
        settings: How the mail is read and cut.
        outline: Whether headings are wanted.
        room: What is left for it.
        read: Reads one file.
    """
    seen: dict[str, int] = {}
    for attachment in attachments:
        if not room.attachments:
            mail.attachments.append(
                {"name": attachment.name, "reason": f"Only {_MOST_ATTACHMENTS} attachments of a mail are read."}
            )
            return
        room.attachments -= 1
        seen[attachment.name] = count = seen.get(attachment.name, 0) + 1
        name = attachment.name if count == 1 else f"{attachment.name} ({count})"
        if not settings.options.get("include_attachment_content", True):
            mail.attachments.append({"name": name})
            continue
        try:
            with room.deeper():
                found = _read_one(attachment, settings, outline, room, read)
        except Unreadable as error:
            mail.attachments.append({"name": name, "reason": str(error)})
        except MemoryError:
            mail.attachments.append({"name": name, "reason": "Reading it takes more memory than a document may use."})
        except RecursionError:
            mail.attachments.append({"name": name, "reason": "It is nested too deeply."})
        except OSError as error:
            mail.attachments.append({"name": name, "reason": f"It could not be unpacked ({error.strerror})."})
        else:
            _join(mail, name, found)


def _read_one(
    attachment: Attachment, settings: ReadSettings, outline: bool, room: Room, read: Read
) -> Reading:  # fmt: skip
    options = {key: settings.options[key] for key in _PASSED_ON if key in settings.options}
    if attachment.encoding is not None:
        options["encoding"] = attachment.encoding
    content = attachment.content()
    room.take_content(content)
    # A file without a name: a child that is killed leaves nothing behind.
    with tempfile.TemporaryFile() as file:
        file.write(content)
        del content
        file.flush()
        file.seek(0)
        path = Path(f"/dev/fd/{file.fileno()}")
        return read(path, attachment.name, ReadSettings(settings.chunking, "auto", options), outline, room)


def _join(mail: Reading, name: str, found: Reading) -> None:
    mail.attachments.append({"name": name, "parser": found.parser})
    mail.attachments += [{**inner, "name": f"{name}/{inner['name']}"} for inner in found.attachments]
    for part in found.parts:
        inner = part.metadata.get("attachment")
        origin = name if inner is None else f"{name}/{inner}"
        mail.parts.append(
            Part(part.text, part.page, {**found.metadata, **part.metadata, "attachment": origin}, part.rows)
        )
    mail.tables += found.tables
    mail.links += found.links
    mail.headings += found.headings
