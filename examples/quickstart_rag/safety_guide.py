"""Writes files/safety_guide.pdf, the same bytes every time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF

PAGES = {
    "Fire and first aid": (
        "In case of fire, ring the brass bell beside the well and call 112.",
        "The meeting point is the oak tree in front of the farm house.",
        "The fire extinguishers hang in the barn, in the dairy and in the shop.",
        "The first aid box is in the farm office, on the shelf behind the door.",
        "The first aider on duty is Nadia Flint.",
    ),
    "Machines and water": (
        "Only people with a licence may drive the green tractor.",
        "The key of the tractor hangs in the office on hook number seven.",
        "The speed limit on the farm is ten kilometres an hour.",
        "The main water valve is in the cellar under the blue lid.",
        "To shut off the water, turn the valve to the right until it stops.",
        "The electric fence is tested every Monday at 7:30.",
    ),
}


def main() -> None:
    """Writes the guide: one page for each heading."""
    guide = FPDF(format=(148, 210))
    guide.set_title("Safety guide of Willowbrook Farm")
    guide.set_author("Martha Penrose")
    guide.set_creation_date(datetime(2025, 3, 1, tzinfo=UTC))
    for heading, sentences in PAGES.items():
        guide.add_page()
        guide.set_font("Helvetica", "B", 16)
        guide.multi_cell(0, 10, heading, new_x="LMARGIN", new_y="NEXT")
        guide.set_font("Helvetica", size=11)
        for sentence in sentences:
            guide.multi_cell(0, 8, sentence, new_x="LMARGIN", new_y="NEXT")
    guide.output(str(Path(__file__).parent / "files" / "safety_guide.pdf"))


if __name__ == "__main__":
    main()
