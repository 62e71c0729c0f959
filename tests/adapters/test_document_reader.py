"""Documents of every kind and hostile files, through real parser children."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fpdf import FPDF
from fpdf.enums import AccessPermission

from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.domain.chunking import ChunkSettings
from llamastead_server.domain.files import DocumentError
from llamastead_server.domain.ports import ParsedDocument
from llamastead_server.domain.reading import ReadSettings
from tests.running_server import wait_until_gone

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
SLIDES = "http://schemas.openxmlformats.org/presentationml/2006/main"
SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def pdf(*pages: str, password: str | None = None) -> bytes:
    document = FPDF()
    document.set_title("The Handbook")
    document.set_author("Ann Lee")
    if password:
        document.set_encryption(owner_password=password, user_password=password, permissions=AccessPermission.none())
    for text in pages:
        document.add_page()
        document.set_font("Helvetica", size=12)
        document.multi_cell(0, 8, text)
    return bytes(document.output())


def package(parts: dict[str, str], main: str, media_type: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Default Extension="xml" ContentType="application/xml"/>'
            f'<Override PartName="/{main}" ContentType="{media_type}"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" '
            f'Type="{OFFICE}/officeDocument" Target="{main}"/></Relationships>',
        )
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def docx(text: str) -> bytes:
    body = f'<w:document xmlns:w="{WORD}"><w:body><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:body></w:document>'
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    return package({"word/document.xml": body}, "word/document.xml", kind)


def pptx(text: str) -> bytes:
    shape = f"<p:sp><p:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
    slide = f'<p:sld xmlns:p="{SLIDES}" xmlns:a="{DRAWING}"><p:cSld><p:spTree>{shape}</p:spTree></p:cSld></p:sld>'
    show = (
        f'<p:presentation xmlns:p="{SLIDES}" xmlns:r="{OFFICE}"><p:sldIdLst><p:sldId id="256" r:id="r1"/>'
        "</p:sldIdLst></p:presentation>"
    )
    links = (
        f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" Type="{OFFICE}/slide" '
        'Target="slides/slide1.xml"/></Relationships>'
    )
    parts = {
        "ppt/presentation.xml": show,
        "ppt/_rels/presentation.xml.rels": links,
        "ppt/slides/slide1.xml": slide,
    }
    kind = "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
    return package(parts, "ppt/presentation.xml", kind)


def xlsx(text: str) -> bytes:
    row = f'<row r="1"><c r="A1" t="inlineStr"><is><t>{text}</t></is></c></row>'
    parts = {
        "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{OFFICE}"><sheets><sheet name="Herd" sheetId="1" '
        'r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{SHEET}"><sheetData>{row}</sheetData></worksheet>',
    }
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"
    return package(parts, "xl/workbook.xml", kind)


SMALL = ReadSettings(ChunkSettings(50, 25))
FACT = "The barn gate closes at 21:00."
MAIL = f"From: ann@farm.test\r\nTo: bo@farm.test\r\nSubject: Gate\r\n\r\n{FACT}\r\n"
PAGE = f"<html><head><title>Gate</title></head><body><p>{FACT}</p><script>no()</script></body></html>"
GOOD = {
    "handbook.pdf": pdf(FACT, "Second page."),
    "handbook.docx": docx(FACT),
    "slides.pptx": pptx(FACT),
    "herd.xlsx": xlsx(FACT),
    "herd.csv": f"name,note\nGate,{FACT}\n".encode(),
    "page.html": PAGE.encode(),
    "notes.md": f"# Gate\n\n{FACT}\n".encode(),
    "notes.txt": FACT.encode(),
    "notes.unknown": FACT.encode(),
    "README": FACT.encode(),
    "code.py": f"# {FACT}\nprint(1)\n".encode(),
    "utf16.txt": FACT.encode("utf-16"),
    "mail.eml": MAIL.encode(),
    "data.json": f'{{"note": "{FACT}"}}'.encode(),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader() -> AsyncIterator[KreuzbergReader]:
    async with KreuzbergReader(timeout=30) as reader:
        yield reader


async def read(
    reader: KreuzbergReader, folder: Path, name: str, content: bytes, settings: ReadSettings | None = None
) -> ParsedDocument:
    path = folder / "content"
    path.write_bytes(content)
    return await reader.read(path, name, settings or ReadSettings(), with_text=True)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", GOOD)
async def test_every_kind_is_read(reader: KreuzbergReader, tmp_path: Path, name: str) -> None:
    document = await read(reader, tmp_path, name, GOOD[name])
    assert FACT in " ".join(piece.text for piece in document.pieces)
    assert "no()" not in document.pieces[0].text
    assert document.parser


@pytest.mark.asyncio(loop_scope="module")
async def test_chunks_of_a_pdf_know_their_page_and_its_author(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "handbook.pdf", pdf(FACT * 30, "Second page."))
    assert [piece.page for piece in document.pieces] == [1, 1, 2]
    assert document.pieces[-1].text == "Second page."
    assert document.parser == "pdf"
    assert (document.metadata["title"], document.metadata["authors"]) == ("The Handbook", ["Ann Lee"])


@pytest.mark.asyncio(loop_scope="module")
async def test_text_in_windows_1252_is_read(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "old.txt", "Crème brûlée for the café. ".encode("cp1252"))
    assert document.pieces[0].text == "Crème brûlée for the café."


def docx_bomb() -> bytes:
    """1 MB of zip that says it is 400 MB of XML."""
    return docx("A" * 400_000_000)


def many_entries() -> bytes:
    file = io.BytesIO(docx(FACT))
    with zipfile.ZipFile(file, "a") as archive:
        for number in range(100_000):
            archive.writestr(f"word/media/{number}", b"")
    return file.getvalue()


def picture_pdf() -> bytes:
    document = FPDF()
    document.add_page()
    document.rect(10, 10, 50, 50, style="F")
    return bytes(document.output())


NOISE = random.Random(7).randbytes(20_000)
HOSTILE = {
    "empty.txt": (b"", "empty"),
    "empty.pdf": (b"", "empty"),
    "blank.txt": (b" \n\n\t ", "No text"),
    "truncated.pdf": (pdf(FACT)[:600], "damaged"),
    "noise.pdf": (NOISE, "damaged"),
    "noise.docx": (NOISE, "damaged"),
    "noise.bin": (NOISE, "not text"),
    "noise.txt": (NOISE, "not text"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n" + NOISE, "picture"),
    "protected.pdf": (pdf(FACT, password="secret"), "password"),
    "picture.pdf": (picture_pdf(), "pictures of text"),
    "renamed.pdf": (docx(FACT), "damaged"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", HOSTILE)
async def test_an_unreadable_file_is_refused_with_a_reason(reader: KreuzbergReader, tmp_path: Path, name: str) -> None:
    content, reason = HOSTILE[name]
    with pytest.raises(DocumentError, match=reason):
        await read(reader, tmp_path, name, content)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_zip_bomb_is_refused(reader: KreuzbergReader, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"far more data|more memory"):
        await read(reader, tmp_path, "bomb.docx", docx_bomb())


@pytest.mark.asyncio(loop_scope="module")
async def test_a_hundred_thousand_zip_entries_end(reader: KreuzbergReader, tmp_path: Path) -> None:
    try:
        document = await read(reader, tmp_path, "many.docx", many_entries())
    except DocumentError:
        return
    assert document.pieces[0].text == FACT


@pytest.mark.asyncio(loop_scope="module")
async def test_deeply_nested_json_is_just_text(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "deep.json", b"[" * 100_000 + b"]" * 100_000)
    assert sum(len(piece.text) for piece in document.pieces) >= 200_000


async def test_text_past_the_limit_is_refused(tmp_path: Path) -> None:
    async with KreuzbergReader(longest_text=10_000) as reader:
        for name, content in (
            ("long.txt", b"word " * 3000),
            ("long.txt", b"word " * 30_000),
            ("long.csv", b"a,b\n" * 5000),
        ):
            with pytest.raises(DocumentError, match="split it"):
                await read(reader, tmp_path, name, content)


def parser_children() -> set[int]:
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in own if "workers.parser" in Path(f"/proc/{pid}/cmdline").read_text()}


async def test_a_document_that_takes_too_long_is_ended_and_the_next_one_is_read(tmp_path: Path) -> None:
    before = parser_children()
    async with KreuzbergReader(timeout=10, children=1) as reader:
        await read(reader, tmp_path, "notes.txt", FACT.encode())
        (child,) = parser_children() - before
        os.kill(child, signal.SIGSTOP)
        reader._timeout = 0.5
        with pytest.raises(DocumentError, match=r"longer than the 0\.5 seconds"):
            await read(reader, tmp_path, "notes.txt", FACT.encode())
        assert child not in parser_children()
        reader._timeout = 30
        document = await read(reader, tmp_path, "notes.txt", FACT.encode())
    assert document.pieces[0].text == FACT


async def test_too_little_memory_fails_the_file_alone(tmp_path: Path) -> None:
    text = "The barn gate closes at nine in the evening. " * 330_000
    async with KreuzbergReader(memory_bytes=600 << 20, children=1) as reader:
        with pytest.raises(DocumentError, match="memory"):
            await read(reader, tmp_path, "huge.html", f"<p>{text}</p>".encode() * 2, SMALL)
        document = await read(reader, tmp_path, "notes.txt", FACT.encode())
    assert document.pieces[0].text == FACT


async def test_children_are_gone_when_the_reader_closes(tmp_path: Path) -> None:
    before = parser_children()
    async with KreuzbergReader(children=2) as reader:
        await asyncio.gather(*(read(reader, tmp_path, "notes.txt", FACT.encode()) for _ in range(4)))
        assert 1 <= len(parser_children() - before) <= 2
    assert parser_children() == before


async def test_a_child_is_replaced_after_its_share_of_documents(tmp_path: Path) -> None:
    async with KreuzbergReader(children=1, documents_per_child=2) as reader:
        for _ in range(5):
            assert (await read(reader, tmp_path, "notes.txt", FACT.encode())).pieces


SERVING = """
import asyncio, sys
from pathlib import Path
from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.domain.reading import ReadSettings

async def main():
    async with KreuzbergReader(children=1) as reader:
        await reader.read(Path(sys.argv[1]), "notes.txt", ReadSettings())
        print("read", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_children_die_with_a_killed_server_even_when_they_are_stuck(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(FACT)
    with subprocess.Popen([sys.executable, "-c", SERVING, str(path)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "read\n"
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), signal.SIGSTOP)
        server.kill()
    assert wait_until_gone([int(pid) for pid in children]) == []
