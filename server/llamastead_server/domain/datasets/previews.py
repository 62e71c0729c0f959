"""Previews: how a document would be cut into chunks, without indexing anything."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamastead_server.domain import names
from llamastead_server.domain.datasets.chunking import ChunkSettings
from llamastead_server.domain.datasets.files import BlobStore, ContentGone, FileStore
from llamastead_server.domain.datasets.parsing_rules import ParsingRules
from llamastead_server.domain.datasets.reading import ReadSettings
from llamastead_server.domain.errors import InvalidRequest, NotFound, ValidationFailed
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import DocumentReader, ParsedPiece, ProjectStore

_MOST_CHUNKS = 1000
_LONGEST_TEXT = 1_000_000


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """What to preview, and what to set differently from the strategy.

    Attributes:
        database: Name of the database.
        dataset: Dataset that holds the file.
        file_hash: SHA-256 of the file, in hex.
        content: The document, instead of a file of a dataset.
        filename: Its name.
        strategy: Processing strategy; by default the dataset's, else the project's first.
        chunk_size: Target size of a chunk.
        chunk_overlap: Characters that neighbouring chunks share.
        chunk_strategy: How chunks are cut.
    """

    database: str
    dataset: str | None = None
    file_hash: str | None = None
    content: bytes | None = None
    filename: str | None = None
    strategy: str | None = None
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    chunk_strategy: str | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """How a document would be cut.

    Attributes:
        filename: Its name.
        size: Bytes.
        parser: What read it.
        settings: Sizes of chunks.
        text: Its text.
        chunks: The first of them.
        lengths: Lengths of all of them, in characters.
        warnings: What is left out.
    """

    filename: str
    size: int
    parser: str
    settings: ChunkSettings
    text: str
    chunks: Sequence[ParsedPiece]
    lengths: Sequence[int]
    warnings: Sequence[str]


class Previews:
    """Cuts documents for show.

    Args:
        projects: Where strategies are configured.
        files: The records of files.
        blobs: Their content.
        reader: Parses and cuts them.
    """

    def __init__(self, projects: ProjectStore, files: FileStore, blobs: BlobStore, reader: DocumentReader) -> None:
        self._projects = projects
        self._files = files
        self._blobs = blobs
        self._reader = reader

    async def preview(self, ref: ProjectRef, request: PreviewRequest) -> Preview:
        """Cuts a file of a dataset, or a document that came with the request.

        Raises:
            NotFound: The project, the database, the dataset, the file or the strategy does not exist.
            InvalidRequest: Nothing to cut was given, or it can't be read.
            ValidationFailed: A size is out of its range.
            ContentGone: The file's content is not on the disk any more.
        """
        config = await self._projects.config(ref)
        database = config.rag.database(request.database).name
        own = config.rag.strategy_names()[0]
        if request.dataset is not None:
            own = config.dataset(request.dataset).data_processing_strategy
        rules = ParsingRules(config.rag.processing_strategy(request.strategy or own), database)
        if request.content is not None:
            if request.dataset is not None or request.file_hash is not None:
                raise InvalidRequest("Give file_content, or dataset_id and file_hash, not both.")
            filename = names.file_name(request.filename or "document.txt")
            settings = _settings(rules, filename, request)
            with tempfile.TemporaryDirectory(prefix="llamastead-preview-") as folder:
                path = Path(folder) / "document"
                await asyncio.to_thread(path.write_bytes, request.content)
                return await self._cut(path, filename, settings)
        if request.dataset is None or request.file_hash is None:
            raise InvalidRequest("Give dataset_id and file_hash of a file, or file_content with its filename.")
        digest = names.file_hash(request.file_hash)
        record = await self._files.get(ref, request.dataset, digest)
        if record is None or not record.visible:
            raise NotFound(f"Dataset {request.dataset!r} holds no file with the hash {digest}.")
        if not await self._blobs.exists(ref, digest):
            raise ContentGone(record.filename)
        settings = _settings(rules, record.filename, request)
        return await self._cut(self._blobs.path(ref, digest), record.filename, settings)

    async def _cut(self, path: Path, filename: str, settings: ReadSettings) -> Preview:
        size = (await asyncio.to_thread(path.stat)).st_size
        document = await self._reader.read(path, filename, settings, with_text=True)
        pieces = document.pieces
        warnings = []
        if len(pieces) > _MOST_CHUNKS:
            warnings.append(f"Only the first {_MOST_CHUNKS} of {len(pieces)} chunks are shown.")
        if len(document.text) > _LONGEST_TEXT:
            warnings.append(f"Only the first {_LONGEST_TEXT} of {len(document.text)} characters of the text are shown.")
        return Preview(
            filename,
            size,
            document.parser,
            settings.chunking,
            document.text[:_LONGEST_TEXT],
            pieces[:_MOST_CHUNKS],
            [len(piece.text) for piece in pieces],
            warnings,
        )


def _settings(rules: ParsingRules, filename: str, request: PreviewRequest) -> ReadSettings:
    """The settings of the file's parser, with those of the request in their place."""
    wanted = {
        "chunk_size": request.chunk_size,
        "chunk_overlap": request.chunk_overlap,
        "chunk_strategy": request.chunk_strategy,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    if request.chunk_size is not None and request.chunk_overlap is None:
        # A smaller chunk than configured still has a sensible overlap.
        configured = rules.settings(filename)[0].chunking
        if configured.overlap > request.chunk_size // 2:
            given["chunk_overlap"] = request.chunk_size // 2
    try:
        return rules.settings(filename, overrides=given)[0]
    except ValidationFailed as error:
        details = {path.removeprefix("parser_overrides."): reason for path, reason in error.details.items()}
        raise ValidationFailed(error.message.replace("parser_overrides.", ""), details=details) from None
