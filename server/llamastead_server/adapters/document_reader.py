"""Reads documents in child processes that are killed when a document takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from llamastead_server.domain.datasets.files import DocumentError
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.ports import ParsedDocument, ParsedPiece
from llamastead_server.workers.formats import MAILS, format_of
from llamastead_server.workers.parser import HEADER

_log = logging.getLogger("llamastead.parser")
_LONGEST_TEXT = 32_000_000
_LONGEST_FRAME = 64 << 20
_ATTACHMENTS_SHARE = 0.5
"""Of the time for a mail, what may have passed when reading another attachment begins."""
# A child has a small address space, which threads' stacks and arenas would fill, and its place is one CPU.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class _Unfinished(DocumentError):
    """The child came to no end with a file, or to its own."""


class KreuzbergReader:
    """A small pool of parser children, each replaced after a failure or after many documents.

    Enter it on the main thread. Children start when the first documents come.

    Args:
        timeout: Seconds one document may take.
        memory_bytes: Address space one child may use.
        children: Documents read at once.
        documents_per_child: Documents after which a child is replaced, so that leaks stay small.
        longest_text: Most characters one document may hold.
    """

    def __init__(
        self,
        *,
        timeout: float = 120.0,
        memory_bytes: int = 2 << 30,
        children: int = 2,
        documents_per_child: int = 200,
        longest_text: int = _LONGEST_TEXT,
    ) -> None:
        self._timeout = timeout
        self._memory_bytes = memory_bytes
        self._documents_per_child = documents_per_child
        self._longest_text = longest_text
        self._idle: list[_Child] = []
        self._places = asyncio.Semaphore(children)

    async def __aenter__(self) -> KreuzbergReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            await self._idle.pop().end()

    async def read(
        self, path: Path, filename: str, settings: ReadSettings, *, with_text: bool = False
    ) -> ParsedDocument:
        """Parses a file, cuts it into chunks and draws metadata from it.

        A mail whose attachments are too much for a child is read without them; its facts say so.

        Args:
            path: The file.
            filename: Its name, which tells its kind.
            settings: How it is read and cut.
            with_text: Whether the answer carries the whole text, which the pieces' positions are about.

        Raises:
            DocumentError: The file can't be read; the message says why.
        """
        try:
            return await self._read(path, filename, settings, with_text)
        except _Unfinished as error:
            if format_of(settings, filename)[0] not in MAILS:
                raise
            bare = replace(settings, options={**settings.options, "include_attachment_content": False})
            document = await self._read(path, filename, bare, with_text)
            named = [{**entry, "reason": error.message} for entry in document.facts.get("attachments", ())]
            return replace(document, facts={**document.facts, "attachments": named} if named else document.facts)

    async def _read(self, path: Path, filename: str, settings: ReadSettings, with_text: bool) -> ParsedDocument:
        request = {
            "path": str(path),
            "filename": filename,
            "settings": settings.plain(),
            "with_text": with_text,
            "attachment_seconds": self._timeout * _ATTACHMENTS_SHARE,
        }
        async with self._places:
            child = await self._living_child()
            reusable = False
            try:
                async with asyncio.timeout(self._timeout):
                    document = await child.ask(request)
                reusable = True
                return document
            except DocumentError:
                raise
            except TimeoutError:
                raise _Unfinished(
                    f"Reading the file took longer than the {self._timeout:g} seconds one document may take."
                ) from None
            except (asyncio.IncompleteReadError, ConnectionError):
                raise _Unfinished(
                    "The parser failed on this file: it may be damaged, or need more memory than one document may use."
                ) from None
            finally:
                if reusable and child.documents < self._documents_per_child:
                    self._idle.append(child)
                else:
                    await child.end()

    async def _living_child(self) -> _Child:
        """A child for one document: one that died while it had nothing to do says nothing about the next one."""
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            await child.end()
        return await _Child.start(self._memory_bytes, self._longest_text)


class _Child:
    """One parser process and the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        connection: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._connection = connection
        self._reader = reader
        self._writer = writer
        self.documents = 0

    @classmethod
    async def start(cls, memory_bytes: int, longest_text: int) -> _Child:
        """Spawns a child; it begins to import while the first request waits in its socket."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "llamastead_server.workers.parser",
                "--socket-fd", str(theirs.fileno()),
                "--memory", str(memory_bytes),
                "--longest-text", str(longest_text),
                stdin=asyncio.subprocess.PIPE, pass_fds=[theirs.fileno()], env=os.environ | _ONE_THREAD,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        _log.debug("parser child %d started", process.pid)
        return cls(process, ours, reader, writer)

    @property
    def alive(self) -> bool:
        """Whether its end of the socket is open; asked of the system, which knows before the event loop does."""
        if self._process.returncode is not None or self._reader.at_eof():
            return False
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    async def ask(self, request: Mapping[str, Any]) -> ParsedDocument:
        """Sends one request and gathers its answer."""
        self.documents += 1
        body = json.dumps(request).encode()
        self._writer.write(HEADER.pack(len(body)) + body)
        await self._writer.drain()
        header = await self._frame()
        if "error" in header:
            raise DocumentError(header["error"])
        text: list[str] = []
        missing = header["characters"]
        while missing > 0:
            text.append((await self._frame())["text"])
            missing -= len(text[-1])
        pieces: list[ParsedPiece] = []
        while len(pieces) < header["pieces"]:
            pieces += [ParsedPiece(**piece) for piece in (await self._frame())["pieces"]]
        metadata = header["metadata"]
        return ParsedDocument(
            header["parser"],
            pieces,
            metadata,
            ("text", *(["metadata"] if metadata else []), *header["extractors"]),
            header["facts"],
            "".join(text),
        )

    async def _frame(self) -> dict[str, Any]:
        (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        if length > _LONGEST_FRAME:
            raise ConnectionError("the parser child sent an oversized frame")
        frame: dict[str, Any] = json.loads(await self._reader.readexactly(length))
        return frame

    async def end(self) -> None:
        """Kills the child; it is gone when this returns."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._writer.close()
        await self._process.wait()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
