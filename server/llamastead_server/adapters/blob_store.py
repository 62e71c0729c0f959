"""Files' content on disk, by its SHA-256: `{project}/lf_data/blobs/{first two digits}/{hash}`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from llamastead_server.adapters.folder_sync import sync_folder
from llamastead_server.domain.errors import NotFound, PayloadTooLarge
from llamastead_server.domain.names import ProjectRef

_BUFFER = 1 << 20


class FileBlobStore:
    """Blobs in the projects' folders.

    Args:
        projects: Folder of the projects: `{data_dir}/projects`.
        max_bytes: Largest content accepted.
    """

    def __init__(self, projects: Path, *, max_bytes: int) -> None:
        self._projects = projects
        self._max_bytes = max_bytes
        self._running: set[Path] = set()

    @asynccontextmanager
    async def receive(self, ref: ProjectRef) -> AsyncIterator[BlobUpload]:
        """Begins an upload into a project; what is not kept is removed when the block is left."""
        upload = BlobUpload(self._folder(ref), self._max_bytes)
        self._running.add(upload.incoming)
        try:
            await asyncio.to_thread(upload.open)
            yield upload
        finally:
            await asyncio.shield(asyncio.to_thread(upload.discard))
            self._running.discard(upload.incoming)

    def path(self, ref: ProjectRef, file_hash: str) -> Path:
        """Where the content is, or would be."""
        return _place(self._folder(ref), file_hash)

    async def exists(self, ref: ProjectRef, file_hash: str) -> bool:
        """Whether the content is there."""
        return await asyncio.to_thread(self.path(ref, file_hash).is_file)

    async def remove(self, ref: ProjectRef, file_hash: str) -> None:
        """Removes the content, if it is there."""
        await asyncio.to_thread(_unlink, self.path(ref, file_hash))

    async def sweep(self) -> None:
        """Removes what uploads left behind when the server died. Only before the first upload."""
        await asyncio.to_thread(self._sweep)

    async def clear_abandoned(self) -> int:
        """Removes what no running upload writes to, and returns its bytes."""
        return await asyncio.to_thread(self._clear, frozenset(self._running))

    def _clear(self, running: frozenset[Path]) -> int:
        freed = 0
        for path in self._projects.glob("*/*/lf_data/incoming/*"):
            if path not in running and path not in self._running:
                with contextlib.suppress(FileNotFoundError):
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def _folder(self, ref: ProjectRef) -> Path:
        return self._projects / ref.namespace / ref.name / "lf_data"

    def _sweep(self) -> None:
        for folder in self._projects.glob("*/*/lf_data/incoming"):
            shutil.rmtree(folder)


class BlobUpload:
    """Content on its way to its place. It is written beside it, so that the last step is a rename."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self.incoming = folder / "incoming" / uuid.uuid4().hex
        self._buffer = bytearray()
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._descriptor = -1
        # A cancelled caller leaves its thread running: this keeps the file open until the thread is done.
        self._in_use = threading.Lock()

    def open(self) -> None:
        """Makes the temporary file; the project's folder is never made here, so a deleted one stays deleted."""
        try:
            self._folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise self._no_project() from None
        self.incoming.parent.mkdir(exist_ok=True)
        self._descriptor = os.open(self.incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def write(self, data: bytes) -> None:
        """Appends bytes; raises `PayloadTooLarge` past the limit."""
        self._size += len(data)
        if self._size > self._max_bytes:
            raise PayloadTooLarge(
                f"The file is larger than the {self._max_bytes:,} bytes this server accepts.",
                details={"max_bytes": str(self._max_bytes)},
            )
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            await self._flush()

    async def finish(self) -> tuple[str, int]:
        """Makes the content durable and returns its SHA-256 in hex and its size in bytes."""
        await self._flush()
        await asyncio.to_thread(self._sync)
        return self._sha256.hexdigest(), self._size

    async def keep(self) -> None:
        """Moves the finished content to its place; raises `NotFound` when its project is gone."""
        await self.keep_as(_place(self._folder, self._sha256.hexdigest()))

    async def keep_as(self, place: Path) -> None:
        """Moves the finished content to a place below the folder; raises `NotFound` when that is gone."""
        try:
            await asyncio.to_thread(self._keep, place)
        except FileNotFoundError:
            raise self._no_project() from None

    def discard(self) -> None:
        """Closes the temporary file and removes it, unless it was moved to its place."""
        with self._in_use:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            self.incoming.unlink(missing_ok=True)

    def _no_project(self) -> NotFound:
        return NotFound(f"Project {'/'.join(self._folder.parts[-3:-1])} not found.")

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        await asyncio.to_thread(self._append, data)

    def _append(self, data: bytearray) -> None:
        with self._in_use:
            view = memoryview(data)
            self._sha256.update(view)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def _sync(self) -> None:
        with self._in_use:
            os.fsync(self._descriptor)

    def _keep(self, place: Path) -> None:
        with self._in_use:
            fresh = [folder for folder in (place.parent.parent, place.parent) if not folder.exists()]
            for folder in fresh:
                folder.mkdir(exist_ok=True)
            self.incoming.rename(place)
            for folder in (place.parent, *(folder.parent for folder in fresh)):
                sync_folder(folder)


def _place(folder: Path, file_hash: str) -> Path:
    return folder / "blobs" / file_hash[:2] / file_hash


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
