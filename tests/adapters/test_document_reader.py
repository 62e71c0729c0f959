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
from PIL import Image, ImageDraw, ImageFont

from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.domain.config.extractors import EXTRACTOR_TYPES
from llamastead_server.domain.config.parsers import PARSER_TYPES
from llamastead_server.domain.config.processing import DataProcessingStrategy
from llamastead_server.domain.datasets.chunking import ChunkSettings
from llamastead_server.domain.datasets.files import DocumentError
from llamastead_server.domain.datasets.parsing_rules import ParsingRules
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.ports import ParsedDocument
from llamastead_server.workers.ocr import Ocr
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


def pptx(*texts: str) -> bytes:
    parts, ids, links = {}, "", ""
    for number, text in enumerate(texts, 1):
        shape = f"<p:sp><p:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
        parts[f"ppt/slides/slide{number}.xml"] = (
            f'<p:sld xmlns:p="{SLIDES}" xmlns:a="{DRAWING}"><p:cSld><p:spTree>{shape}</p:spTree></p:cSld></p:sld>'
        )
        ids += f'<p:sldId id="{255 + number}" r:id="r{number}"/>'
        links += f'<Relationship Id="r{number}" Type="{OFFICE}/slide" Target="slides/slide{number}.xml"/>'
    show = f'<p:presentation xmlns:p="{SLIDES}" xmlns:r="{OFFICE}"><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>'
    parts["ppt/presentation.xml"] = show
    parts["ppt/_rels/presentation.xml.rels"] = f'<Relationships xmlns="{PACKAGE}/relationships">{links}</Relationships>'
    kind = "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
    return package(parts, "ppt/presentation.xml", kind)


def xlsx(*rows: str) -> bytes:
    """A sheet named Herd; the cells of a row are parted by `|`."""
    row = "".join(
        f'<row r="{number}">'
        + "".join(
            f'<c r="{"ABCDE"[column]}{number}" t="inlineStr"><is><t>{cell}</t></is></c>'
            for column, cell in enumerate(text.split("|"))
        )
        + "</row>"
        for number, text in enumerate(rows, 1)
    )
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
@pytest.mark.parametrize("text", ["👩‍👩‍👧‍👦", "می\u200cخواهم", "\u200fשלום\u200e"], ids=ascii)
async def test_letters_that_only_join_or_turn_others_are_text(
    reader: KreuzbergReader, tmp_path: Path, text: str
) -> None:
    document = await read(reader, tmp_path, "notes.txt", text.encode())
    assert document.text == text


@pytest.mark.asyncio(loop_scope="module")
async def test_chunks_of_a_pdf_know_their_page_and_its_author(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "handbook.pdf", pdf(FACT * 30, "Second page."))
    assert [piece.page for piece in document.pieces] == [1, 1, 2]
    assert document.pieces[-1].text == "Second page."
    assert document.parser == "pdf"
    assert (document.metadata["title"], document.metadata["authors"]) == ("The Handbook", ["Ann Lee"])


@pytest.mark.asyncio(loop_scope="module")
async def test_the_date_of_a_mail_is_written_like_that_of_any_document(reader: KreuzbergReader, tmp_path: Path) -> None:
    dated = b"Date: Mon, 03 Mar 2025 10:00:00 +0100\r\n" + MAIL.encode()
    assert (await read(reader, tmp_path, "a.eml", dated)).metadata["created_at"] == "2025-03-03T10:00:00+01:00"
    undated = b"Date: some day in March\r\n" + MAIL.encode()
    assert (await read(reader, tmp_path, "b.eml", undated)).pieces


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
async def test_deeply_nested_json_is_just_text(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "deep.json", b"[" * 100_000 + b"]" * 100_000)
    assert sum(len(piece.text) for piece in document.pieces) >= 200_000


def lying_docx() -> bytes:
    """A few KB of zip whose directory says 1 KB of XML, and that expands to far more."""
    file = bytearray(docx("A" * 50_000_000))
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        size = archive.getinfo("word/document.xml").file_size
    true, said = size.to_bytes(4, "little"), (1000).to_bytes(4, "little")
    return bytes(file.replace(true, said))


def many_pages() -> bytes:
    """A PDF whose page tree names one page 25,000 times."""
    kids = b" ".join([b"3 0 R"] * 25_000)
    return (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Count 25000/Kids["
        + kids
        + b"]>>endobj\n3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj\n"
        b"trailer<</Root 1 0 R/Size 4>>\n%%EOF"
    )


def most_memory(of: set[int]) -> int:
    """The most memory, in MB, that any of these processes has held."""
    lines = [line for pid in of for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return max((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), default=0)


BOMBS = {
    "bomb.docx": (docx_bomb, "far more data"),
    "lying.docx": (lying_docx, "far more data"),
    "entries.docx": (many_entries, "far more data"),
    "bomb.xlsx": (lambda: xlsx("A" * 600_000_000), "far more data"),
    "bomb.pptx": (lambda: pptx("A" * 600_000_000), "far more data"),
    "pages.pdf": (many_pages, "pages"),
    "long.txt": (lambda: b"The gate closes at nine. " * 4_000_000, "split it"),
    "long.csv": (lambda: b"a,b\n" * 25_000_000, "split it"),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_fails_alone_in_bounded_memory(tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    before = parser_children()
    async with KreuzbergReader(timeout=60, children=1) as reader:
        with pytest.raises(DocumentError, match=reason):
            await read(reader, tmp_path, name, make())
        assert most_memory(parser_children() - before) < 700
        document = await read(reader, tmp_path, "notes.txt", FACT.encode())
    assert document.pieces[0].text == FACT


def picture(kind: str = "PNG") -> bytes:
    image = Image.new("RGB", (900, 120), "white")
    ImageDraw.Draw(image).text((20, 40), FACT, fill="black", font=ImageFont.load_default(40))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def scanned_pdf() -> bytes:
    document = FPDF()
    document.add_page()
    document.set_font("Helvetica", size=12)
    document.multi_cell(0, 8, "This page is text.")
    document.add_page()
    document.image(io.BytesIO(picture()), w=180)
    return bytes(document.output())


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.tiff", "TIFF")])
async def test_a_picture_is_read_or_says_what_is_missing(
    reader: KreuzbergReader, tmp_path: Path, name: str, kind: str
) -> None:
    if Ocr.missing("eng") is None:
        document = await read(reader, tmp_path, name, picture(kind))
        assert (document.parser, [piece.text for piece in document.pieces]) == ("image", [FACT])
    else:
        with pytest.raises(DocumentError, match="apt-get install tesseract-ocr"):
            await read(reader, tmp_path, name, picture(kind))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_scanned_page_is_read_where_it_can_be_and_the_others_always(
    reader: KreuzbergReader, tmp_path: Path
) -> None:
    document = await read(reader, tmp_path, "scan.pdf", scanned_pdf())
    expected = [("This page is text.", 1), (FACT, 2)]
    assert [(piece.text, piece.page) for piece in document.pieces] == expected[: 2 if Ocr.missing("eng") is None else 1]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_language_that_is_not_installed_is_named(reader: KreuzbergReader, tmp_path: Path) -> None:
    settings = settings_of("auto", ocr_language="xx_yy")
    with pytest.raises(DocumentError, match=r"'xx_yy'.*apt-get install tesseract-ocr-xx-yy"):
        await read(reader, tmp_path, "a.png", picture(), settings)
    with pytest.raises(DocumentError, match="use_ocr"):
        await read(reader, tmp_path, "a.png", picture(), settings_of("auto", use_ocr=False))


NAMED = {"pdf": "a.pdf", "sheets": "a.xlsx", "table": "a.csv", "word": "a.docx", "mail": "a.eml", "markdown": "a.md"}


def settings_of(parser: str, *extractors: str, **config: object) -> ReadSettings:
    strategy = {"name": "s", "parsers": [{"type": parser, "config": config}], "extractors": list(extractors)}
    name = NAMED.get(PARSER_TYPES[parser].kind, "a.txt")
    return ParsingRules(DataProcessingStrategy.model_validate(strategy), "main_db").settings(name)[0]


@pytest.mark.asyncio(loop_scope="module")
async def test_slides_are_pages(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "slides.pptx", pptx("First slide.", "Žluťoučký kůň.", "Third slide."))
    pieces = [(piece.text, piece.page) for piece in document.pieces]
    assert pieces == [("First slide.", 1), ("Žluťoučký kůň.", 2), ("Third slide.", 3)]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("parser", ["auto", *(name for name in PARSER_TYPES if name.startswith(("CSV", "Excel")))])
async def test_rows_name_their_columns_and_are_never_cut(reader: KreuzbergReader, tmp_path: Path, parser: str) -> None:
    rows = [f"animal {n}|sound {n}" for n in range(60)]
    sheets = parser.startswith("Excel")
    content = xlsx("name|note", *rows) if sheets else "\n".join(["name|note", *rows]).replace("|", ";").encode()
    name = "a.xlsx" if sheets else "a.csv"
    document = await read(reader, tmp_path, name, content, settings_of(parser))
    lines = [line for piece in document.pieces for line in piece.text.splitlines()]
    assert lines == [f"name: animal {n}; note: sound {n}" for n in range(60)]
    assert all(len(piece.text) <= 500 for piece in document.pieces)
    if parser != "auto":
        document = await read(reader, tmp_path, name, content, settings_of(parser, chunk_size=25))
        assert [len(piece.text.splitlines()) for piece in document.pieces] == [25, 25, 10]
    if sheets:
        assert {piece.metadata["sheet"] for piece in document.pieces} == {"Herd"}


@pytest.mark.asyncio(loop_scope="module")
async def test_table_settings_take_effect(reader: KreuzbergReader, tmp_path: Path) -> None:
    content = b"exported today\nname,note\ngoat,NA\nllama,'a, b'\n"
    config: dict[str, object] = {"skiprows": 1, "na_values": ["NA"], "quotechar": "'", "delimiter": ","}
    settings = settings_of("CSVParser_LlamaIndex", **config, field_mapping={"name": "animal"})
    document = await read(reader, tmp_path, "a.csv", content, settings)
    assert document.pieces[0].text == "animal: goat\nanimal: llama; note: a, b"
    columns = settings_of("CSVParser_Pandas", **config, chunk_strategy="columns")
    document = await read(reader, tmp_path, "a.csv", content, columns)
    assert [(piece.metadata["column"], piece.text) for piece in document.pieces] == [
        ("name", "name\ngoat\nllama"),
        ("note", "note\na, b"),
    ]
    with pytest.raises(DocumentError, match="no sheet of the configured names; it has 'Herd'"):
        await read(reader, tmp_path, "a.xlsx", xlsx("a|b"), settings_of("ExcelParser_Pandas", sheets=["Flock"]))


MARKDOWN = (
    f"Preface.\n\n# Barn\n\n{FACT}\n\n## Gate\n\n```sh\n# not a heading\n```\n\nIt is green.\n\n# Goats\n\nMilked.\n"
)


@pytest.mark.asyncio(loop_scope="module")
async def test_tabs_part_the_words_of_a_word_file(reader: KreuzbergReader, tmp_path: Path) -> None:
    content = docx("Gate:</w:t><w:tab/><w:t>21:00")
    assert (await read(reader, tmp_path, "a.docx", content)).text == "Gate: 21:00"


TEXT_BOX = "<w:txbxContent><w:p><w:r><w:t>In the</w:t></w:r></w:p><w:p><w:r><w:t>box.</w:t></w:r></w:p></w:txbxContent>"


@pytest.mark.parametrize(
    "box",
    [
        f"<w:pict>{TEXT_BOX}</w:pict>",
        f'<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><mc:Choice>'
        f"<w:drawing>{TEXT_BOX}</w:drawing></mc:Choice><mc:Fallback><w:pict>{TEXT_BOX}</w:pict></mc:Fallback>"
        "</mc:AlternateContent>",
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_text_box_hides_no_text_of_its_paragraph(reader: KreuzbergReader, tmp_path: Path, box: str) -> None:
    content = docx(f"Before.</w:t></w:r><w:r>{box}</w:r><w:r><w:t>After.")
    assert (await read(reader, tmp_path, "a.docx", content)).text.split() == ["Before.", "In", "the", "box.", "After."]


@pytest.mark.asyncio(loop_scope="module")
async def test_an_opendocument_text_keeps_spans_in_spans_and_parts_the_lines_of_a_cell(
    reader: KreuzbergReader, tmp_path: Path
) -> None:
    body = (
        "<text:p>Gates <text:span>close <text:span>at nine</text:span></text:span></text:p>"
        "<table:table><table:table-row>"
        "<table:table-cell><text:p>North</text:p><text:p>South</text:p></table:table-cell></table:table-row></table:table>"
    )
    schema = "urn:oasis:names:tc:opendocument:xmlns"
    spaces = " ".join(f'xmlns:{name}="{schema}:{name}:1.0"' for name in ("office", "text", "table"))
    path = tmp_path / "a.odt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        archive.writestr(
            "content.xml",
            f"<office:document-content {spaces}><office:body><office:text>{body}</office:text></office:body>"
            "</office:document-content>",
        )
    document = await reader.read(path, "a.odt", ReadSettings(), with_text=True)
    assert document.text.split() == ["Gates", "close", "at", "nine", "North", "South"]


@pytest.mark.asyncio(loop_scope="module")
async def test_soft_hyphens_are_text_and_part_no_word(reader: KreuzbergReader, tmp_path: Path) -> None:
    document = await read(reader, tmp_path, "notes.txt", "co\u00adop".encode())
    assert document.text == "coop"


@pytest.mark.asyncio(loop_scope="module")
async def test_hyphens_of_words_stay_and_soft_ones_go(reader: KreuzbergReader, tmp_path: Path) -> None:
    content = docx("well</w:t><w:noBreakHyphen/><w:t>known co</w:t><w:softHyphen/><w:t>operation")
    assert (await read(reader, tmp_path, "a.docx", content)).text == "well-known cooperation"
    assert (await read(reader, tmp_path, "a.html", b"<p>co&shy;operation")).text.strip() == "cooperation"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_page_that_is_one_form_is_read(reader: KreuzbergReader, tmp_path: Path) -> None:
    content = b"<form action=x><h1>Gates</h1><p>They close at 21:00.</p><input value=q></form>"
    assert (await read(reader, tmp_path, "a.html", content)).text.split("\n\n") == ["# Gates", "They close at 21:00.\n"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "said", ['<meta charset="windows-1251">', "<meta http-equiv=x content='text/html; charset=cp1251'>"]
)
async def test_a_page_is_read_in_the_encoding_it_says(reader: KreuzbergReader, tmp_path: Path, said: str) -> None:
    page = f"<html><head>{said}</head><body><p>Ворота</p></body></html>"
    assert (await read(reader, tmp_path, "a.html", page.encode("cp1251"))).text.strip() == "Ворота"
    assert (await read(reader, tmp_path, "a.html", page.encode())).text.strip() == "Ворота"
    wrong = page.replace("1251", "none").replace("Ворота", "café")
    assert (await read(reader, tmp_path, "a.html", wrong.encode("cp1252"))).text.strip() == "café"


WHOLE_PAGE = (
    "<html><head><title>Gates &amp; barns</title><meta name=author content=Ann></head><body><div>Bare text<div>inner"
    "</div></div><blockquote>quoted</blockquote><ul><li>item<ul><li>item below</ul></ul><dl><dt>term<dd>meaning</dl>"
    "<section>section</section><figure><img src='data:image/png;base64,AAAA' alt=''><figcaption>caption</figcaption>"
    "</figure><h2>Heading</h2><table><tr><td>cell<td>b<tr><td>a cell that is wider<td>c</table></body></html>"
)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_page_is_read_whole_whatever_its_text_stands_in(reader: KreuzbergReader, tmp_path: Path) -> None:
    settings = settings_of("auto", "HeadingExtractor")
    document = await read(reader, tmp_path, "a.html", WHOLE_PAGE.encode(), settings)
    for words in (
        "Bare text", "inner", "quoted", "item\n", "item below", "term", "meaning", "section", "caption", "| cell | b |",
    ):  # fmt: skip
        assert words in document.text, words
    assert "base64" not in document.text
    assert (document.metadata["title"], document.facts["headings"]) == ("Gates & barns", ["Heading"])


@pytest.mark.asyncio(loop_scope="module")
async def test_markdown_is_read_as_it_stands(reader: KreuzbergReader, tmp_path: Path) -> None:
    text = "- item\n  - item below\n\n<div>block</div>\n\nNoted[^1].\n\n[^1]: The note.\n"
    assert (await read(reader, tmp_path, "a.md", text.encode())).text == text
    pictured = await read(reader, tmp_path, "a.md", f"{text}![A barn](data:image/png;base64,AAAA)".encode())
    assert pictured.text == f"{text}![A barn]()"


@pytest.mark.asyncio(loop_scope="module")
async def test_markdown_is_cut_at_its_headings(reader: KreuzbergReader, tmp_path: Path) -> None:
    settings = settings_of("MarkdownParser_Python", "HeadingExtractor")
    document = await read(reader, tmp_path, "a.md", MARKDOWN.encode(), settings)
    assert [piece.metadata.get("section") for piece in document.pieces] == [None, "Barn", "Barn > Gate", "Goats"]
    assert document.facts["headings"] == ["Barn", "Gate", "Goats"]
    assert "not a heading" in document.pieces[2].text
    plain = settings_of("MarkdownParser_Python", extract_code_blocks=False)
    document = await read(reader, tmp_path, "a.md", MARKDOWN.encode(), plain)
    assert "not a heading" not in document.pieces[2].text


@pytest.mark.asyncio(loop_scope="module")
async def test_pdf_settings_take_effect(reader: KreuzbergReader, tmp_path: Path) -> None:
    content = pdf("First page. It is short.", "Second page.")
    one = await read(reader, tmp_path, "a.pdf", content, settings_of("PDFParser_PyPDF2", combine_pages=True))
    assert [piece.text for piece in one.pieces] == ["First page. It is short.\n\nSecond page."]
    plain = settings_of("PDFParser_PyPDF2", extract_page_info=False, extract_metadata=False)
    bare = await read(reader, tmp_path, "a.pdf", content, plain)
    assert ([piece.page for piece in bare.pieces], bare.metadata) == ([None, None], {})
    pages = settings_of("PDFParser_LlamaIndex", chunk_strategy="pages", chunk_size=50)
    whole = await read(reader, tmp_path, "a.pdf", pdf(FACT * 10), pages)
    assert len(whole.pieces) == 1


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["handbook.pdf", "slides.pptx", "herd.csv", "notes.md", "notes.txt"])
async def test_pieces_say_where_they_stand_in_the_text(reader: KreuzbergReader, tmp_path: Path, name: str) -> None:
    document = await read(reader, tmp_path, name, GOOD[name], SMALL)
    assert document.pieces
    for piece in document.pieces:
        assert document.text[piece.start : piece.end] == piece.text


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", GOOD)
async def test_every_extractor_runs_on_every_kind(reader: KreuzbergReader, tmp_path: Path, name: str) -> None:
    settings = ReadSettings(extractors=[(extractor, {}) for extractor in EXTRACTOR_TYPES])
    document = await read(reader, tmp_path, name, GOOD[name], settings)
    assert set(document.extractors) >= {"text", *EXTRACTOR_TYPES}
    assert document.facts["times"] == ["21:00"]
    assert document.facts["word_count"] >= 5


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


async def test_a_child_that_was_killed_while_it_had_nothing_to_do_fails_no_file(tmp_path: Path) -> None:
    before = parser_children()
    async with KreuzbergReader(children=1) as reader:
        await read(reader, tmp_path, "notes.txt", FACT.encode())
        (child,) = parser_children() - before
        os.kill(child, signal.SIGKILL)
        while Path(f"/proc/{child}").exists():
            await asyncio.sleep(0.02)
        assert (await read(reader, tmp_path, "notes.txt", FACT.encode())).pieces[0].text == FACT


async def test_a_child_is_replaced_after_its_share_of_documents(tmp_path: Path) -> None:
    async with KreuzbergReader(children=1, documents_per_child=2) as reader:
        for _ in range(5):
            assert (await read(reader, tmp_path, "notes.txt", FACT.encode())).pieces


SERVING = """
import asyncio, sys
from pathlib import Path
from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.domain.datasets.reading import ReadSettings

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
