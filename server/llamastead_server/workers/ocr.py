"""Reads text in pictures by Tesseract, where its language data is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Where Tesseract's packages put their language data, as kreuzberg, which carries the engine itself, looks for it.
_FOLDERS = (
    "/usr/share/tesseract-ocr/5/tessdata",
    "/usr/share/tesseract-ocr/4/tessdata",
    "/usr/share/tessdata",
    "/usr/local/share/tessdata",
    "/opt/homebrew/share/tessdata",
)
_DPI = 200


class Ocr:
    """Tesseract for one set of languages.

    Args:
        kreuzberg: The library.
        language: Tesseract's names of languages, joined by `+`.
    """

    def __init__(self, kreuzberg: Any, language: str) -> None:
        self._kreuzberg = kreuzberg
        self._config = kreuzberg.ExtractionConfig(
            use_cache=False,
            output_format="plain",
            # Without its own switch the engine keeps what it read in the user's cache folder.
            ocr=kreuzberg.OcrConfig(
                backend="tesseract",
                language=language,
                tesseract_config=kreuzberg.TesseractConfig(language=language, output_format="text", use_cache=False),
            ),
            concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
        )

    @staticmethod
    def missing(language: str) -> str | None:
        """Why pictures can't be read in these languages; `None` when they can."""
        folders = [folder for folder in (os.environ.get("TESSDATA_PREFIX"), *_FOLDERS) if folder]
        for name in language.split("+"):
            if not any(Path(folder, f"{name}.traineddata").is_file() for folder in folders):
                package = "tesseract-ocr" if name == "eng" else f"tesseract-ocr-{name.replace('_', '-')}"
                return (
                    f"text in pictures is read by Tesseract, whose data for the language {name!r} is not installed on "
                    f"the server: install it (Debian and Ubuntu: `apt-get install {package}`), then process again"
                )
        return None

    def picture(self, path: Path, media_type: str) -> str:
        """The text of a picture file."""
        return str(self._kreuzberg.extract_file_sync(path, media_type, self._config).content)

    def page(self, path: Path, index: int) -> str:
        """The text of a page of a PDF, counted from 0, as it looks."""
        image = self._kreuzberg.render_pdf_page(str(path), index, dpi=_DPI)
        return str(self._kreuzberg.extract_bytes_sync(image, "image/png", self._config).content)
