"""YAML as plain JSON data, written atomically."""

from __future__ import annotations

import codecs
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from llamastead_server.adapters.alignment import same
from llamastead_server.adapters.folder_sync import sync_folder
from llamastead_server.adapters.yaml_revision import revised
from llamastead_server.domain.errors import InvalidRequest

TEMPORARY = ".writing-"
_MAX_BYTES = 4 << 20
_MAX_VALUES = 200_000
_MERGED = "tag:yaml.org,2002:merge"
_OTHER_LINE_ENDS = re.compile(r"[\r\x85\u2028\u2029]")
_NUMBER_TO_OTHERS = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|0o[0-7]+")
"""Text here, but a number to readers of YAML 1.2 unless it is quoted."""


def parse(text: bytes) -> dict[str, Any]:
    """Reads a mapping; dates and other YAML extras become strings, so that the result is JSON data.

    Raises:
        InvalidRequest: The text is not YAML, not a mapping, or unreasonably large.
    """
    if len(text) > _MAX_BYTES:
        raise InvalidRequest(f"The file has {len(text)} bytes; at most {_MAX_BYTES} are read.")
    try:
        loaded = _loaded(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace(' in "<byte string>"', "")
        raise InvalidRequest(f"The file is not valid YAML: {reason}.") from None
    if not isinstance(loaded, dict):
        raise InvalidRequest("The file must hold a YAML mapping.")
    plain: dict[str, Any] = _Plain().convert(loaded)
    return plain


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file by one rename, after its content is safely on disk; what people wrote into it is gone.

    Raises:
        InvalidRequest: It would be too large to be read again.
    """
    _put(path, _anew(dict(content)))


def revise(path: Path, content: Mapping[str, Any]) -> None:
    """Changes what the file says, also by one rename, and leaves all else as people wrote it.

    A file that is not there, can't be understood or can't be changed in part is written anew. Who may read it still
    may, and of a link to a file elsewhere it is that file which changes.

    Raises:
        InvalidRequest: It would be too large to be read again.
    """
    path = path.resolve()
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return write(path, content)
    return _put(path, _revised(before, dict(content)), mode=path.stat().st_mode)


def _revised(before: bytes, content: dict[str, Any]) -> str:
    try:
        encoding = "utf-16" if before.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        text = before.decode(encoding)
        # Editors on Windows end lines otherwise and begin with a mark of the encoding; both stay as they are.
        windows = "\r\n" in text and text.count("\r\n") == text.count("\n") == text.count("\r")
        if windows:
            text = text.replace("\r\n", "\n")
        changed = revised(text, parse(before), content, dump)
        if changed is not None:
            changed = changed.replace("\n", "\r\n") if windows else changed
            changed = f"\ufeff{changed}" if before.startswith(codecs.BOM_UTF8) else changed
            if same(parse(changed.encode()), content):
                return changed
    except (InvalidRequest, UnicodeDecodeError):
        pass
    return _anew(content)


def _anew(content: dict[str, Any]) -> str:
    text = dump(content)
    parse(text.encode())
    return text


def dump(content: Any, *, flow: bool = False) -> str:
    """JSON data as YAML, in one line in brackets if `flow` is set."""
    width = 1 << 30 if flow else 120
    return yaml.dump(content, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=width)


def _put(path: Path, text: str, *, mode: int | None = None) -> None:
    temporary = path.with_name(f"{TEMPORARY}{uuid4()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _loaded(text: bytes) -> Any:
    loader = yaml.CSafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_keys(root: yaml.Node) -> None:
    """Raises `YAMLError` where a mapping has a key twice: the loader would take the last and forget the others."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != _MERGED:
                    line = key.start_mark.line + 1
                    if (key.tag, key.value) in lines:
                        first = lines[key.tag, key.value]
                        raise yaml.YAMLError(f"the key {key.value[:100]!r} is there twice, in lines {first} and {line}")
                    lines[key.tag, key.value] = line
            inner = [entry for pair in node.value for entry in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        for entry in inner:
            if id(entry) not in seen:
                seen.add(id(entry))
                waiting.append(entry)


class _Dumper(yaml.CSafeDumper):
    """Writes shared values out in full rather than as aliases, and long texts as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: Any, text: str) -> Any:
    # A block that ends in blank lines would take those in that follow it; one with other line ends can't be indented.
    block = "\n" in text.rstrip("\n") and not text.endswith("\n\n") and not _OTHER_LINE_ENDS.search(text)
    quotes = "'" if _NUMBER_TO_OTHERS.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if block else quotes)


_Dumper.add_representer(str, _string)


class _Plain:
    """Counts what it converts: aliases make a small YAML file expand without bound."""

    def __init__(self) -> None:
        self._left = _MAX_VALUES

    def convert(self, value: Any, depth: int = 64) -> Any:
        self._left -= 1
        if self._left < 0 or depth == 0:
            raise InvalidRequest(f"The file holds more than {_MAX_VALUES} values, or nests deeper than 64 levels.")
        if isinstance(value, dict):
            return {str(key): self.convert(entry, depth - 1) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.convert(entry, depth - 1) for entry in value]
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        return str(value)
