"""The content of batches' files: one file each in `{data_dir}/batches`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llamastead_server.adapters.blob_store import BlobUpload
from llamastead_server.domain.tasks.batch_records import Checked

_PIECE = 256 << 10
_MOST_LINES = 50_000
_LONGEST_LINE = 4 << 20
_LONGEST_CUSTOM_ID = 512
_SHOWN_ERRORS = 100


class BatchFolder:
    """`domain.batch_records.BatchContent` over a folder.

    Args:
        data_dir: The data folder.
        max_bytes: Largest file of requests.
    """

    def __init__(self, data_dir: Path, *, max_bytes: int) -> None:
        self._folder = data_dir / "batches"
        self._max_bytes = max_bytes

    @asynccontextmanager
    async def receive(self) -> AsyncIterator[_Upload]:
        """Begins an upload."""
        upload = BlobUpload(self._folder, self._max_bytes)
        try:
            await asyncio.to_thread(upload.open)
            yield _Upload(upload, self._folder)
        finally:
            await asyncio.shield(asyncio.to_thread(upload.discard))

    async def read(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The content in pieces; a file that is deleted meanwhile is read to its end."""
        file = await asyncio.to_thread(self._path(file_id).open, "rb")
        try:
            while data := await asyncio.to_thread(file.read, _PIECE):
                yield data
        finally:
            file.close()

    async def check(self, file_id: str, endpoint: str) -> Checked:
        """Checks every line."""
        return await asyncio.to_thread(self._check, file_id, endpoint)

    async def requests(self, file_id: str) -> AsyncGenerator[Mapping[str, Any], None]:
        """The lines of a checked file."""
        file = await asyncio.to_thread(self._path(file_id).open, "rb")
        try:
            while line := await asyncio.to_thread(file.readline):
                if line.strip():
                    yield json.loads(line)
        finally:
            file.close()

    async def journal(self, output_file_id: str, error_file_id: str) -> FileJournal:
        """Opens a batch's answers."""
        return await asyncio.to_thread(FileJournal, self._path(output_file_id), self._path(error_file_id))

    async def size(self, file_id: str) -> int:
        """Bytes of a file; 0 if there is none."""
        path = self._path(file_id)
        return await asyncio.to_thread(lambda: path.stat().st_size if path.is_file() else 0)

    async def remove(self, file_id: str) -> None:
        """Removes a file, if it is there."""
        await asyncio.to_thread(self._path(file_id).unlink, missing_ok=True)

    async def sweep(self, known: Sequence[str]) -> None:
        """Removes what crashes left."""
        await asyncio.to_thread(self._sweep, frozenset(known))

    def _path(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.jsonl"

    def _sweep(self, known: frozenset[str]) -> None:
        shutil.rmtree(self._folder / "incoming", ignore_errors=True)
        for path in self._folder.glob("file-*.jsonl"):
            if path.stem not in known:
                path.unlink()

    def _check(self, file_id: str, endpoint: str) -> Checked:
        seen: set[str] = set()
        errors: list[dict[str, Any]] = []
        total = 0
        with self._path(file_id).open("rb") as file:
            for number, line in _numbered(file):
                if not line.strip():
                    continue
                total += 1
                reason = "the line is too long" if len(line) > _LONGEST_LINE else _fault(line, endpoint, seen)
                if total > _MOST_LINES:
                    reason = f"there are more than {_MOST_LINES} lines"
                if reason is not None:
                    errors.append({"code": "invalid_line", "line": number, "message": f"Line {number}: {reason}."})
                if len(errors) == _SHOWN_ERRORS or total > _MOST_LINES:
                    break
        if not total:
            errors.append({"code": "empty_file", "line": None, "message": "The file holds no requests."})
        return Checked(total, errors)


class _Upload:
    def __init__(self, upload: BlobUpload, folder: Path) -> None:
        self._upload = upload
        self._folder = folder

    async def write(self, data: bytes) -> None:
        await self._upload.write(data)

    async def keep(self, file_id: str) -> int:
        _, size = await self._upload.finish()
        await self._upload.keep_as(self._folder / f"{file_id}.jsonl")
        return size


class FileJournal:
    """`domain.batch_records.Journal` over two files that only grow.

    Args:
        output: File of answers.
        errors: File of failed requests.
    """

    def __init__(self, output: Path, errors: Path) -> None:
        self._output = output
        self._errors = errors
        self.done: set[str] = set()
        self.completed = self._take_up(output)
        self.failed = self._take_up(errors)

    async def append(self, custom_id: str, line: Mapping[str, Any], *, failed: bool) -> None:
        """Adds a line; it is on disk when this returns."""
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        # Shielded: half a line would be cut off at the next start, but this process would take it for whole.
        await asyncio.shield(asyncio.to_thread(_append, self._errors if failed else self._output, text))
        self.done.add(custom_id)
        self.failed += failed
        self.completed += not failed

    def _take_up(self, path: Path) -> int:
        if not path.exists():
            return 0
        whole = count = 0
        with path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                count += 1
                self.done.add(json.loads(line)["custom_id"])
            file.truncate(whole)
        return count


def _append(path: Path, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        whole = os.fstat(descriptor).st_size
        view = memoryview(text)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            # On a full disk a part of it may have found room.
            os.ftruncate(descriptor, whole)
            raise
    finally:
        os.close(descriptor)


def _numbered(file: Any) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; of one that is too long, its beginning."""
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        yield number, line
        while len(line) > _LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE + 1)


def _torn(request: Any) -> bool:
    """Whether a text holds half of a surrogate pair: JSON can escape one, but no answer can quote it."""
    try:
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _fault(line: bytes, endpoint: str, seen: set[str]) -> str | None:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if b"\\u" in line and _torn(request):
        return "it holds half of a surrogate pair, which is no text"
    if not isinstance(request, dict):
        return "it is not an object"
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_CUSTOM_ID:
        return f"custom_id must be a string of 1 to {_LONGEST_CUSTOM_ID} characters"
    if custom_id in seen:
        return f"custom_id {custom_id!r} was used before"
    seen.add(custom_id)
    if request.get("method", "POST") != "POST":
        return "method must be POST"
    if request.get("url") != endpoint:
        return f"url must be the batch's endpoint, {endpoint}"
    return None if isinstance(request.get("body"), dict) else "body must be an object"
