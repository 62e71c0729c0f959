"""What mails carry, of the Internet and of Outlook, through real parser children."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import pytest
import pytest_asyncio

from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.domain.datasets.files import DocumentError
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.ports import ParsedDocument
from llamastead_server.workers.documents import Reader
from tests.adapters.test_document_reader import (
    FACT,
    NOISE,
    docx,
    docx_bomb,
    most_memory,
    parser_children,
    pdf,
    read,
    settings_of,
    xlsx,
)
from tests.outlook_file import Storage, attachment, compound
from tests.outlook_file import mail as outlook_mail

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILES = {
    "handbook.pdf": pdf("First page.", f"Second page. {FACT}"),
    "herd.xlsx": xlsx("animal|sound", "goat|bleat"),
    "notes.docx": docx(FACT),
    "plain.txt": FACT.encode(),
    "photo.raw": NOISE,
    "broken.pdf": b"%PDF-1.7 nonsense",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader() -> AsyncIterator[KreuzbergReader]:
    async with KreuzbergReader(timeout=60, children=1) as reader:
        yield reader


def letter(subject: str = "Gate", text: str = "See the files.") -> EmailMessage:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, "ann@farm.test", "bo@farm.test"
    message.set_content(text)
    return message


def eml(files: dict[str, bytes]) -> bytes:
    message = letter()
    for name, content in files.items():
        message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes()


def msg(files: dict[str, bytes], *more: Storage) -> bytes:
    carried = [attachment(name, content) for name, content in files.items()]
    return compound(outlook_mail("Gate", "See the files.", *carried, *more))


def texts(document: ParsedDocument) -> dict[str | None, str]:
    """The text of every attachment; the mail's own under `None`."""
    found: dict[str | None, str] = {}
    for piece in document.pieces:
        name = piece.metadata.get("attachment")
        found[name] = f"{found.get(name, '')} {piece.text}".strip()
    return found


def carried(document: ParsedDocument) -> dict[str, str]:
    """What became of each attachment: its parser, else the reason."""
    return {entry["name"]: entry.get("parser") or entry.get("reason", "") for entry in document.facts["attachments"]}


@pytest.mark.parametrize("name", ["a.eml", "a.msg"])
async def test_every_attachment_is_read_by_its_kind_and_chunks_say_which_they_are_of(
    reader: KreuzbergReader, tmp_path: Path, name: str
) -> None:
    document = await read(reader, tmp_path, name, (eml if name == "a.eml" else msg)(FILES))
    found = texts(document)
    assert "See the files." in found[None]
    assert FACT not in found[None]
    assert found["handbook.pdf"] == f"First page. Second page. {FACT}"
    assert found["herd.xlsx"] == "animal: goat; sound: bleat"
    assert found["notes.docx"] == found["plain.txt"] == FACT
    assert set(found) == {None, "handbook.pdf", "herd.xlsx", "notes.docx", "plain.txt"}
    pages = [piece for piece in document.pieces if piece.metadata.get("attachment") == "handbook.pdf"]
    assert [(piece.page, piece.metadata["title"]) for piece in pages] == [(1, "The Handbook"), (2, "The Handbook")]
    assert document.metadata["title"] == "Gate"
    kinds = carried(document)
    assert (kinds["handbook.pdf"], kinds["herd.xlsx"], kinds["plain.txt"]) == ("pdf", "xlsx", "text")
    assert "not one that can be read" in kinds["photo.raw"]
    assert "damaged" in kinds["broken.pdf"]
    for piece in document.pieces:
        assert document.text[piece.start : piece.end] == piece.text


async def test_mails_inside_mails_are_read_to_a_small_depth(reader: KreuzbergReader, tmp_path: Path) -> None:
    message = letter("Level 5", "Text 5.")
    for level in range(4, -1, -1):
        outer = letter(f"Level {level}", f"Text {level}.")
        outer.add_attachment(message)
        message = outer
    document = await read(reader, tmp_path, "a.eml", message.as_bytes())
    first, second = "Level 1.eml", "Level 1.eml/Level 2.eml"
    third = f"{second}/Level 3.eml"
    assert {name: found.splitlines()[-1] for name, found in texts(document).items()} == {
        None: "Text 0.", first: "Text 1.", second: "Text 2.", third: "Text 3.",
    }  # fmt: skip
    assert carried(document) == {
        first: "eml", second: "eml", third: "eml", f"{third}/Level 4.eml": "It is nested in more than 3 mails.",
    }  # fmt: skip


async def test_outlook_mails_carry_mails_that_carry_files(reader: KreuzbergReader, tmp_path: Path) -> None:
    inner = outlook_mail("Würfel", "Inner text.", attachment("deep.txt", FACT.encode()))
    within = {"other.eml": letter("Other", "Sent as a file.").as_bytes()}
    document = await read(reader, tmp_path, "a.msg", msg(within, attachment("", inner)))
    found = texts(document)
    assert found["Würfel.eml/deep.txt"] == FACT
    assert "Inner text." in found["Würfel.eml"]
    assert "Sent as a file." in found["other.eml"]
    outlook = eml({"forwarded.msg": msg({"deep.txt": FACT.encode()})})
    assert texts(await read(reader, tmp_path, "b.eml", outlook))["forwarded.msg/deep.txt"] == FACT


async def test_names_and_encodings_of_attachments_are_understood(reader: KreuzbergReader, tmp_path: Path) -> None:
    parts = (
        ('text/plain; charset="iso-8859-2"', 'attachment; filename="=?utf-8?B?xb5sdXTDvS50eHQ=?="', b"\xbelu\xbb"),
        ("application/pdf", "attachment", pdf(FACT)),
        ("text/plain; charset=no-such", 'inline; filename="../../etc/pass\x01wd.txt"', b"inline"),
        ("text/plain", 'attachment; filename="same.txt"', b"one"),
        ("text/plain", 'attachment; filename="same.txt"', b"two"),
    )
    lines = [b"Subject: x", b'Content-Type: multipart/mixed; boundary="B"', b"", b"--B", b"", b"Own text."]
    for kind, disposition, content in parts:
        lines += [
            b"--B",
            f"Content-Type: {kind}".encode(),
            f"Content-Disposition: {disposition}".encode(),
            b"",
            content,
        ]
    document = await read(reader, tmp_path, "a.eml", b"\r\n".join([*lines, b"--B--", b""]))
    found = texts(document)
    assert found["žlutý.txt"] == "žluť"
    assert found["passwd.txt"] == "inline"
    assert (found["same.txt"], found["same.txt (2)"]) == ("one", "two")
    assert FACT in found["unnamed.pdf"]
    assert "Own text." in found[None]


async def test_a_mail_that_is_nothing_but_a_file_is_read(reader: KreuzbergReader, tmp_path: Path) -> None:
    message = EmailMessage()
    message["Subject"] = "Scan"
    message.set_content(pdf(FACT), maintype="application", subtype="pdf", filename="scan.pdf")
    assert texts(await read(reader, tmp_path, "a.eml", message.as_bytes()))["scan.pdf"] == FACT


async def test_a_parser_s_settings_say_whether_attachments_are_read_or_named(
    reader: KreuzbergReader, tmp_path: Path
) -> None:
    content = eml({"plain.txt": FACT.encode()})
    named = await read(reader, tmp_path, "a.eml", content, settings_of("MsgParser", include_attachment_content=False))
    assert (set(texts(named)), carried(named)) == ({None}, {"plain.txt": ""})
    none = await read(reader, tmp_path, "a.eml", content, settings_of("MsgParser", extract_attachments=False))
    assert (set(texts(none)), none.facts) == ({None}, {})
    both = await read(reader, tmp_path, "a.eml", content, settings_of("MsgParser", "DateTimeExtractor"))
    assert both.facts["times"] == ["21:00"]
    assert carried(both) == {"plain.txt": "text"}


async def test_bombs_in_a_mail_fail_alone_in_bounded_memory(tmp_path: Path) -> None:
    bombs = {
        "bomb.docx": docx_bomb(),
        "long.txt": b"The gate closes at nine. " * 100_000,
        "plain.txt": FACT.encode(),
    }
    for name, make in (("a.eml", eml), ("a.msg", msg)):
        before = parser_children()
        async with KreuzbergReader(timeout=60, children=1, longest_text=1_000_000) as reader:
            document = await read(reader, tmp_path, name, make(bombs))
            assert most_memory(parser_children() - before) < 900
        assert set(texts(document)) == {None, "plain.txt"}
        assert "far more data" in carried(document)["bomb.docx"]
        assert "more text" in carried(document)["long.txt"]


async def test_a_mail_whose_files_share_their_bytes_carries_no_more_than_a_mail_may(tmp_path: Path) -> None:
    shared = NOISE * 250
    before = parser_children()
    async with KreuzbergReader(timeout=120, children=1) as reader:
        document = await read(reader, tmp_path, "a.msg", msg({f"{number:02}.raw": shared for number in range(60)}))
        assert most_memory(parser_children() - before) < 900
    assert "not one that can be read" in carried(document)["00.raw"]
    assert "larger than" in carried(document)["59.raw"]


async def test_all_a_mail_carries_has_together_the_room_of_one_document(tmp_path: Path) -> None:
    files = {f"{number}.txt": b"word " * 1500 for number in range(3)}
    async with KreuzbergReader(longest_text=10_000) as reader:
        document = await read(reader, tmp_path, "a.eml", eml(files))
        assert set(texts(document)) == {None, "0.txt"}
        assert "more text" in carried(document)["2.txt"]
        with pytest.raises(DocumentError, match="split it"):
            await read(reader, tmp_path, "a.eml", letter(text="word " * 3000).as_bytes())


async def test_an_attachment_that_is_too_much_for_the_parser_costs_the_mail_nothing_else(tmp_path: Path) -> None:
    page = f"<p>{'The barn gate closes at nine in the evening. ' * 330_000}</p>".encode() * 2
    async with KreuzbergReader(memory_bytes=700 << 20, children=1) as reader:
        document = await read(reader, tmp_path, "a.eml", eml({"huge.html": page, "plain.txt": FACT.encode()}))
    assert "See the files." in texts(document)[None]
    assert "memory" in carried(document)["huge.html"]


async def test_a_mail_whose_attachments_take_too_long_is_read_without_them(tmp_path: Path) -> None:
    before = parser_children()
    async with KreuzbergReader(timeout=60, children=1) as reader:
        await read(reader, tmp_path, "notes.txt", FACT.encode())
        (child,) = parser_children() - before
        os.kill(child, signal.SIGSTOP)
        reader._timeout = 10
        document = await read(reader, tmp_path, "a.eml", eml({"plain.txt": FACT.encode()}))
    assert "longer than the 10 seconds" in carried(document)["plain.txt"]
    assert set(texts(document)) == {None}


async def test_no_attachment_is_begun_when_the_time_for_them_is_up(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(eml({"plain.txt": FACT.encode()}))
    reading = Reader(1_000_000).read(path, "a.eml", ReadSettings(), attachment_seconds=-1.0)
    assert [part.metadata for part in reading.parts] == [{}]
    assert "took the time" in reading.attachments[0]["reason"]


async def test_only_so_many_attachments_are_read(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "a.eml", eml({f"{number}.txt": b"x" for number in range(230)}))
    assert len(texts(document)) == 201
    assert len(document.facts["attachments"]) == 201
    assert carried(document)["200.txt"] == "Only 200 attachments of a mail are read."


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "cut": content[:middle],
        "noisy": content[:middle] + NOISE[:2000] + content[middle + 2000 :],
        "empty": b"",
        "noise": NOISE,
    }


@pytest.mark.parametrize("kind", ["eml", "msg"])
@pytest.mark.parametrize("how", ["cut", "noisy", "empty", "noise"])
async def test_a_damaged_mail_is_read_as_far_as_it_goes_or_refused(
    reader: KreuzbergReader, tmp_path: Path, kind: str, how: str
) -> None:
    whole = (eml if kind == "eml" else msg)({"plain.txt": FACT.encode() * 300, "handbook.pdf": pdf(FACT)})
    with contextlib.suppress(DocumentError):
        assert (await read(reader, tmp_path, f"a.{kind}", damaged(whole)[how])).pieces
    # Whatever came of it, the next one is read.
    assert (await read(reader, tmp_path, "b.txt", FACT.encode(), ReadSettings())).pieces[0].text == FACT


async def test_multiparts_without_end_fail_alone(reader: KreuzbergReader, tmp_path: Path) -> None:
    head = b"".join(
        f'Content-Type: multipart/mixed; boundary="b{level}"\r\n\r\n--b{level}\r\n'.encode() for level in range(3000)
    )
    with pytest.raises(DocumentError):
        await read(reader, tmp_path, "a.eml", b"Subject: x\r\n" + head + b"\r\ntext\r\n")
    assert (await read(reader, tmp_path, "b.txt", FACT.encode())).pieces


LETTER_PAGE = "<div>Dear <b>Bo</b>,<div>caf\u00e9 &amp; barn</div></div>"


@pytest.mark.parametrize("said", ["", "  \n", "In plain text."])
async def test_a_mail_s_page_is_read_as_one_unless_plain_text_says_the_same(
    reader: KreuzbergReader, tmp_path: Path, said: str
) -> None:
    message = letter(text=said)
    message.add_alternative(LETTER_PAGE, subtype="html", charset="latin-1")
    document = await read(reader, tmp_path, "a.eml", message.as_bytes())
    assert ("Dear **Bo**,\n\ncaf\u00e9 & barn" in document.text) == (not said.strip())
    assert said.strip() in document.text


async def test_a_page_with_a_footer_in_plain_text_is_read_with_it(reader: KreuzbergReader, tmp_path: Path) -> None:
    message = EmailMessage()
    message.set_content(LETTER_PAGE, subtype="html")
    message.add_attachment("The list's footer.", disposition="inline")
    document = await read(reader, tmp_path, "a.eml", message.as_bytes())
    assert "barn" in document.text
    assert "The list's footer." in document.text


@pytest.mark.parametrize(
    ("said", "charset"),
    [("日本語の手紙", "iso-2022-jp"), ("日本語", "shift_jis"), ("中文信件", "gb2312"), ("한국어", "euc-kr")],
)
async def test_mails_are_read_in_the_encoding_they_say(
    reader: KreuzbergReader, tmp_path: Path, said: str, charset: str
) -> None:
    head = f"Subject: x\nContent-Type: text/plain; charset={charset}\n\n"
    assert said in (await read(reader, tmp_path, "a.eml", head.encode() + said.encode(charset))).text
