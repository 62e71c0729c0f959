"""Writes the files/ that have no text form, the same bytes every time: PDF, Word, Excel, PowerPoint, mail."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

from docx import Document
from fpdf import FPDF
from pptx import Presentation
from xlsxwriter import Workbook

FILES = Path(__file__).parent / "files"
MADE = datetime(2025, 4, 1, 9, 0, tzinfo=UTC)
AUTHOR = "Larkspur Bicycle Works"

MANUAL = {
    "Charging": (
        "A full charge takes four and a half hours at a wall socket.",
        "Charge the battery between 5 and 35 degrees only.",
        "The battery keeps eighty percent of its capacity after 900 full cycles.",
    ),
    "Assistance": (
        "There are four levels of assistance: Eco, Tour, Sport and Boost.",
        "The motor assists up to 25 kilometres an hour.",
        "In Eco the range is 140 kilometres on flat roads.",
    ),
    "Error codes": (
        "E10: the battery is not locked in its holder.",
        "E21: the speed sensor sees no magnet.",
        "E33: the motor is too hot; wait for fifteen minutes.",
    ),
}
WARRANTY = {
    "Frame": "The frame and the rigid fork are guaranteed for five years from the day of purchase.",
    "Battery": "The battery is guaranteed for three years or 900 full charging cycles, whichever comes first.",
    "Wear": "Tyres, brake pads, chains and belts wear out and are not covered.",
    "Claims": "Send the invoice and two photographs to warranty@larkspur.example. An answer comes within five days.",
}
PRICES = (
    ("Model", "Kind", "Weight in kg", "Price in euros"),
    ("Vireo", "electric city bicycle", 23.5, 2890),
    ("Kestrel", "trail bicycle", 13.1, 1990),
    ("Heron", "touring bicycle", 14.8, 1490),
    ("Wren", "folding bicycle", 11.9, 1290),
    ("Ox", "electric cargo bicycle", 38.0, 5490),
)
SLIDES = {
    "Spring 2025": ("Five models, one workshop standard", "Every frame is welded in Delft"),
    "The Ox carries more": ("Two children or 100 kilograms of freight", "Box of recycled fishing nets"),
    "Goals": ("Open a store in Lisbon in September", "Take back every old battery by 2026"),
}
RECALL = """Dear customers,

we recall all chargers of the Vireo whose serial number begins with LC4. A capacitor in them can overheat.
Please stop using the charger at once and bring it to any of our stores, or ask for a prepaid parcel label.
You get a new charger on the spot. No other charger is affected.

Nadia Okafor
Product safety, Larkspur Bicycle Works
"""


def manual(path: Path) -> None:
    """A PDF of one page for each chapter."""
    document = FPDF(format=(148, 210))
    document.set_title("Manual of the Vireo")
    document.set_author(AUTHOR)
    document.set_creation_date(MADE)
    for heading, sentences in MANUAL.items():
        document.add_page()
        document.set_font("Helvetica", "B", 16)
        document.multi_cell(0, 10, heading, new_x="LMARGIN", new_y="NEXT")
        document.set_font("Helvetica", size=11)
        for sentence in sentences:
            document.multi_cell(0, 8, sentence, new_x="LMARGIN", new_y="NEXT")
    document.output(str(path))


def warranty(path: Path) -> None:
    """A Word document with headings."""
    document = Document()
    document.core_properties.author = AUTHOR
    document.core_properties.created = document.core_properties.modified = MADE.replace(tzinfo=None)
    document.add_heading("Warranty terms", 0)
    for heading, text in WARRANTY.items():
        document.add_heading(heading, 1)
        document.add_paragraph(text)
    document.save(str(path))


def prices(path: Path) -> None:
    """An Excel sheet."""
    with Workbook(str(path)) as book:
        book.set_properties({"author": AUTHOR, "created": MADE.replace(tzinfo=None)})
        sheet = book.add_worksheet("Prices 2025")
        for number, row in enumerate(PRICES):
            sheet.write_row(number, 0, row)


def overview(path: Path) -> None:
    """A PowerPoint presentation."""
    show = Presentation()
    show.core_properties.author = AUTHOR
    show.core_properties.created = show.core_properties.modified = MADE.replace(tzinfo=None)
    # Layouts nobody uses would be most of the file.
    for layout in list(show.slide_layouts)[2:]:
        show.slide_layouts.remove(layout)
    for title, points in SLIDES.items():
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = "\n".join(points)
    show.save(str(path))


def recall(path: Path) -> None:
    """A mail."""
    mail = EmailMessage()
    mail["From"] = "Nadia Okafor <safety@larkspur.example>"
    mail["To"] = "customers@larkspur.example"
    mail["Subject"] = "Recall of chargers LC4"
    mail["Date"] = MADE
    mail.set_content(RECALL)
    path.write_bytes(mail.as_bytes())


def repack(path: Path) -> None:
    """Packs an Office file again, with one date for all its parts and without its thumbnail."""
    with zipfile.ZipFile(path) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    thumbnail = "docProps/thumbnail.jpeg"
    if parts.pop(thumbnail, None) is not None:
        relations = parts["_rels/.rels"].decode()
        before, _, after = relations.partition(f'Target="{thumbnail}"')
        parts["_rels/.rels"] = (before[: before.rindex("<")] + after[after.index(">") + 1 :]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name, content in parts.items():
            packed.writestr(zipfile.ZipInfo(name, (2025, 4, 1, 9, 0, 0)), content, zipfile.ZIP_DEFLATED)


def main() -> None:
    """Writes them all."""
    manual(FILES / "manual.pdf")
    recall(FILES / "recall.eml")
    for name, write in {"warranty.docx": warranty, "prices.xlsx": prices, "overview.pptx": overview}.items():
        write(FILES / name)
        repack(FILES / name)


if __name__ == "__main__":
    main()
