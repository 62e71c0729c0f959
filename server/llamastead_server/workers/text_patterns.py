"""What patterns find in text: dates, addresses, numbers, names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any

LONGEST_LIST = 20
LONGEST_VALUE = 200

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_DAY_FIRST = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s+({_MONTH})\.?,?\s+(\d{{4}})\b", re.I)
_MONTH_FIRST = re.compile(rf"\b({_MONTH})\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})\b", re.I)
_SLASHED = re.compile(r"\b(\d{1,2})[/.](\d{1,2})[/.](\d{4})\b")
_TIME = re.compile(r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s?[ap]m)?\b|\b(?:1[0-2]|0?[1-9])\s?[ap]\.?m\b", re.I)
_DURATION = re.compile(
    r"\b(?:\d+(?:\.\d+)?|an?|one|two|three|four|five|six|seven|eight|nine|ten)\s+"
    r"(?:second|minute|hour|day|week|month|year)s?\b",
    re.I,
)
_RELATIVE = re.compile(
    r"\b(?:today|tomorrow|yesterday|(?:next|last|this)\s+(?:week|month|year|monday|tuesday|wednesday|thursday|friday|"
    r"saturday|sunday)|\d+\s+(?:days?|weeks?|months?|years?)\s+ago)\b",
    re.I,
)

EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}\b")
URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"'`{}|\\^\[\]]{3,500}", re.I)
_DATE = re.compile("|".join(f"(?:{each.pattern})" for each in (_ISO_DATE, _DAY_FIRST, _MONTH_FIRST, _SLASHED)), re.I)
_PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d{3}[ .-]\d{3,4}(?:[ .-]\d{2,4}){0,2}(?!\w)")
_IP = re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b")
_FILE_PATH = re.compile(r"(?<![\w/:.])(?:~|\.{1,2})?/(?:[\w.+-]+/)*[\w.+-]+|\b[A-Za-z]:\\(?:[\w .+-]+\\)*[\w.+-]+")
_S3 = re.compile(r"\bs3://[a-z0-9.-]{3,63}(?:/[^\s\"'<>]*)?")
_VERSION = re.compile(r"\bv?\d+\.\d+(?:\.\d+){1,2}(?:-[\w.]+)?\b|\bv\d+\.\d+\b")

PATTERNS: Mapping[str, re.Pattern[str]] = {
    "email": EMAIL,
    "phone": _PHONE,
    "url": URL,
    "ip": _IP,
    "ip_address": _IP,
    "ssn": re.compile(r"\b\d{3}-\d{2}-\d{4}\b"),
    "credit_card": re.compile(r"\b(?:\d{4}[ -]?){3}\d{4}\b"),
    "zip_code": re.compile(r"\b\d{5}(?:-\d{4})?\b"),
    "file_path": _FILE_PATH,
    "version": _VERSION,
    "date": _DATE,
}
"""The patterns `PatternExtractor` knows by name."""

_NAME = r"[A-Z][\w'’-]+(?:\s+[A-Z][\w'’-]+){0,2}"
_ENTITIES: Mapping[str, re.Pattern[str]] = {
    "PERSON": re.compile(rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Sir|Professor|Doctor|President)\.?\s+{_NAME}"),
    "ORG": re.compile(
        rf"\b(?:{_NAME}\s+(?:Inc|Ltd|LLC|GmbH|AG|Corp|Corporation|Company|Co|Foundation|Institute|University|"
        rf"Association|Agency|Administration|Bank|Group)\b\.?|(?:University|Institute|Department|Ministry|Bank)\s+of\s+"
        rf"{_NAME})"
    ),
    "DATE": _DATE,
    "TIME": _TIME,
    "MONEY": re.compile(
        r"(?:[$€£¥]\s?\d[\d,]*(?:\.\d+)?(?:\s?(?:thousand|million|billion))?|\b\d[\d,]*(?:\.\d+)?\s?"
        r"(?:dollars?|euros?|pounds?|USD|EUR|GBP)\b)"
    ),
    "EMAIL": EMAIL,
    "PHONE": _PHONE,
    "URL": URL,
    "PERCENT": re.compile(r"(?<![\w.])\d+(?:\.\d+)?\s?(?:%|percent\b)"),
    "LAW": re.compile(
        r"\b(?:Section|Article|Title|Rule)\s+\d+[\w.()-]*|§+\s?\d+[\w.()-]*|"
        r"\b[A-Z]\w+(?:\s+[A-Z]\w+){0,3}\s+Act(?:\s+of\s+\d{4})?\b|\b\d+\s+(?:CFR|U\.?S\.?C\.?)\s+[\d.]+"
    ),
    "VERSION": _VERSION,
}


def found(pattern: re.Pattern[str], text: str, most: int = LONGEST_LIST) -> list[str]:
    """Different matches in the order they come."""
    return unique((match[0].strip().rstrip(".,;:)") for match in pattern.finditer(text)), most)


def unique(values: Iterable[str], most: int = LONGEST_LIST) -> list[str]:
    """Different values, cut to a length that metadata can hold."""
    kept: dict[str, None] = {}
    for value in values:
        if value:
            kept.setdefault(value[:LONGEST_VALUE])
        if len(kept) >= most:
            break
    return list(kept)


def date_time(text: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dates in ISO form with the first and the last of them, times, durations, relative dates."""
    dates = unique(_iso_dates(text))
    return {
        "dates": dates,
        "first_date": min(dates, default=""),
        "last_date": max(dates, default=""),
        "times": found(_TIME, text) if settings["extract_times"] else [],
        "durations": found(_DURATION, text) if settings["extract_durations"] else [],
        "relative_dates": found(_RELATIVE, text) if settings["extract_relative"] else [],
    }


def _iso_dates(text: str) -> Iterable[str]:
    readings: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[int, int, int]]]] = (
        (_ISO_DATE, lambda match: (int(match[1]), int(match[2]), int(match[3]))),
        (_DAY_FIRST, lambda match: (int(match[3]), _month(match[2]), int(match[1]))),
        (_MONTH_FIRST, lambda match: (int(match[3]), _month(match[1]), int(match[2]))),
        (_SLASHED, _slashed),
    )
    placed = []
    for pattern, reading in readings:
        for match in pattern.finditer(text):
            try:
                placed.append((match.start(), date(*reading(match)).isoformat()))
            except ValueError:
                continue
    return (iso for _, iso in sorted(placed))


def _month(name: str) -> int:
    return _MONTHS.index(name[:3].lower()) + 1


def _slashed(match: re.Match[str]) -> tuple[int, int, int]:
    """31.12.2026 by its dots and 12/31/2026 by its slashes; what only fits the other way is read so."""
    first, second, year = int(match[1]), int(match[2]), int(match[3])
    day_first = "." in match[0] or first > 12
    return (year, second, first) if day_first else (year, first, second)


def entities(text: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Entities by type; types that no pattern can tell are left out."""
    wanted = settings["entity_types"] or _ENTITIES
    shortest = settings["min_entity_length"]
    by_type = {
        name: values
        for name in wanted
        if name in _ENTITIES and (values := [value for value in found(_ENTITIES[name], text) if len(value) >= shortest])
    }
    return {"entities": by_type, "entity_count": sum(map(len, by_type.values()))}


def links(text: str, targets: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """URLs, mail addresses and domains."""
    urls = unique([*found(URL, text), *(target for target in targets if URL.match(target))])
    mails = unique([*found(EMAIL, text), *(target[7:] for target in targets if target.startswith("mailto:"))])
    domains = unique([*(url.split("/")[2].lower() for url in urls), *(mail.split("@")[1].lower() for mail in mails)])
    return {
        "links": urls if settings["extract_urls"] else [],
        "emails": mails if settings["extract_emails"] else [],
        "domains": domains if settings["extract_domains"] else [],
    }


def paths(text: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """File paths, paths of URLs and S3 paths."""
    urls = found(URL, text)
    # What is left of a URL looks like a path.
    rest = _S3.sub(" ", URL.sub(" ", text))
    files = found(_FILE_PATH, rest)
    if settings["normalize_paths"]:
        files = unique(path.replace("\\", "/") for path in files)
    return {
        "file_paths": files if settings["extract_file_paths"] else [],
        "url_paths": unique("/" + "/".join(url.split("/")[3:]) for url in urls) if settings["extract_urls"] else [],
        "s3_paths": found(_S3, text) if settings["extract_s3_paths"] else [],
    }


def pattern_matches(text: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Matches by the name of their pattern."""
    flags = 0 if settings["case_sensitive"] else re.I
    wanted = {name: PATTERNS[name] for name in settings["predefined_patterns"]}
    wanted |= {entry["name"]: re.compile(entry["pattern"], flags | re.M) for entry in settings["custom_patterns"]}
    if not wanted:
        wanted = {name: PATTERNS[name] for name in ("email", "phone", "url")}
    matches = {name: _matches(pattern, text, settings) for name, pattern in wanted.items()}
    return {"patterns": {name: values for name, values in matches.items() if values}}


def _matches(pattern: re.Pattern[str], text: str, settings: Mapping[str, Any]) -> list[Any]:
    kept: list[Any] = []
    seen: set[str] = set()
    for match in pattern.finditer(text):
        value = match[0][:LONGEST_VALUE]
        if not value or (settings["deduplicate_matches"] and value in seen):
            continue
        seen.add(value)
        if settings["return_positions"] or settings["include_context"]:
            entry: dict[str, Any] = {"value": value}
            if settings["return_positions"]:
                entry |= {"start": match.start(), "end": match.end()}
            if settings["include_context"]:
                entry["context"] = text[max(0, match.start() - 40) : match.end() + 40]
            kept.append(entry)
        else:
            kept.append(value)
        if len(kept) >= min(settings["max_matches_per_pattern"], LONGEST_LIST):
            break
    return kept
