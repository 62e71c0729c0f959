"""How processing a dataset goes, file by file."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llamastead_server.domain.files import FileRecord
from llamastead_server.domain.parsing_rules import ParsingRules
from llamastead_server.domain.ports import Collection, Embedder, TaskProgress

FilePhase = Literal["pending", "processing", "processed", "skipped", "failed"]
_TASK_STATES: Mapping[str, str] = {"processed": "success", "failed": "failure"}
_SHORTEST_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class FileResult:
    """How one file was processed.

    Attributes:
        hash: SHA-256 of the content, in hex.
        filename: Name of the file.
        status: How far it is.
        parser: What read it.
        extractors: What was drawn from it.
        chunks: Chunks indexed so far.
        chunk_size: Target size of a chunk, in characters.
        embedder: Embedding model.
        error: Why it failed.
        reason: Why it was skipped.
    """

    hash: str
    filename: str
    status: FilePhase = "pending"
    parser: str | None = None
    extractors: Sequence[str] = ()
    chunks: int | None = None
    chunk_size: int | None = None
    embedder: str | None = None
    error: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessingReport:
    """How processing a dataset went, file by file."""

    strategy: str
    database: str
    files: Sequence[FileResult]

    def count(self, status: FilePhase) -> int:
        """Files of one status."""
        return sum(result.status == status for result in self.files)

    def plain(self) -> dict[str, Any]:
        """The report as a task's result."""
        return {
            **{f"{status}_files": self.count(status) for status in ("processed", "skipped", "failed")},
            "strategy": self.strategy,
            "database": self.database,
            "details": [
                {key: value for key, value in asdict(result).items() if value is not None} for result in self.files
            ],
        }


class ProcessingRun:
    """One run over a dataset: its settings, and how far each file is."""

    def __init__(
        self,
        collection: Collection,
        strategy: ParsingRules,
        records: Sequence[FileRecord],
        progress: TaskProgress | None,
        embedder: Embedder,
    ) -> None:
        self.collection = collection
        self.embedder = embedder
        self.strategy = strategy
        self.records = records
        self._progress = progress
        self._results = [FileResult(record.hash, record.filename) for record in records]
        self._announced_at = -_SHORTEST_PAUSE

    async def note(self, index: int, **changes: Any) -> None:
        """Records how far a file is."""
        self._results[index] = replace(self._results[index], **changes)
        await self.announce()

    async def announce(self) -> None:
        """Tells the task how far the run is, a few times a second at most; its end always."""
        now = asyncio.get_running_loop().time()
        done = Counter(result.status for result in self._results)
        working = done["pending"] + done["processing"] > 0
        if self._progress is None or (working and now < self._announced_at + _SHORTEST_PAUSE):
            return
        self._announced_at = now
        ended = done["processed"] + done["skipped"] + done["failed"]
        total = len(self._results)
        files = [
            {
                "index": index,
                "file_hash": result.hash,
                "filename": result.filename,
                "state": _TASK_STATES.get(result.status, result.status),
                "chunks": result.chunks or 0,
                **({"error": result.error} if result.error else {}),
            }
            for index, result in enumerate(self._results)
        ]
        message = f"Processing {ended + 1} of {total} files" if working else f"Processed {total} files"
        await self._progress.report(ended, total, message, files)

    def report(self) -> ProcessingReport:
        """The results so far."""
        return ProcessingReport(self.strategy.name, self.collection.database, list(self._results))
