"""The formats of files that can be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llamastead_server.domain.datasets.reading import ReadSettings

_OFFICE = "application/vnd.openxmlformats-officedocument."
_SHEETS = f"{_OFFICE}spreadsheetml.sheet"
# kreuzberg's own name for each kind of file it is trusted with here. Source code is not among them: for that it
# would download grammars.
_FORMATS: Mapping[str, tuple[str, str]] = {
    "pdf": ("pdf", "application/pdf"),
    "docx": ("docx", f"{_OFFICE}wordprocessingml.document"),
    "docm": ("docx", f"{_OFFICE}wordprocessingml.document"),
    "pptx": ("pptx", f"{_OFFICE}presentationml.presentation"),
    "xls": ("xls", "application/vnd.ms-excel"),
    **dict.fromkeys(("xlsx", "xlsm", "xltx", "xltm"), ("xlsx", _SHEETS)),
    "odt": ("odt", "application/vnd.oasis.opendocument.text"),
    "ods": ("ods", "application/vnd.oasis.opendocument.spreadsheet"),
    "epub": ("epub", "application/epub+zip"),
    "rtf": ("rtf", "application/rtf"),
    "msg": ("msg", "application/vnd.ms-outlook"),
    "eml": ("eml", "message/rfc822"),
    **dict.fromkeys(("html", "htm"), ("html", "text/html")),
    **dict.fromkeys(("md", "markdown", "mdown", "mkd", "mdx"), ("markdown", "text/markdown")),
    "csv": ("csv", "text/csv"),
    "tsv": ("csv", "text/tab-separated-values"),
    "png": ("image", "image/png"),
    **dict.fromkeys(("jpg", "jpeg"), ("image", "image/jpeg")),
    **dict.fromkeys(("tif", "tiff"), ("image", "image/tiff")),
    "bmp": ("image", "image/bmp"),
    "webp": ("image", "image/webp"),
    "gif": ("image", "image/gif"),
}
TEXT = frozenset({"text", "html", "markdown", "csv"})
ARCHIVES = frozenset({"docx", "pptx", "xlsx", "odt", "ods", "epub"})
MAILS = frozenset({"msg", "eml"})
GRIDS = frozenset({"xlsx", "xls", "ods"})


def format_of(settings: ReadSettings, filename: str) -> tuple[str, str]:
    """Name and media type of the format a file is read as."""
    extension = Path(filename).suffix.lower().lstrip(".")
    found = _FORMATS.get(extension)
    match settings.kind:
        case "auto":
            return found or ("text", "text/plain")
        case "text":
            return "text", "text/plain"
        case "sheets":
            return found if found is not None and found[0] in GRIDS else _FORMATS["xlsx"]
        case "mail":
            return _FORMATS["msg" if extension == "msg" else "eml"]
    return _FORMATS[{"pdf": "pdf", "table": "csv", "word": "docx", "markdown": "md"}[settings.kind]]


def is_format(filename: str) -> bool:
    """Whether the name's ending is that of a format that is not simply text."""
    return Path(filename).suffix.lower().lstrip(".") in _FORMATS
