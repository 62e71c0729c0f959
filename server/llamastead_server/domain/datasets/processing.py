"""How processing a dataset goes, file by file."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from llamastead_server.domain.datasets.files import FileRecord
from llamastead_server.domain.datasets.parsing_rules import ParsingRules
from llamastead_server.domain.ports import Collection, Embedder, TaskProgress
from llamastead_server.domain.tasks.records import TaskFailed

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
        metadata: What extractors found in it as a whole.
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
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored_count(self) -> int:
        """Chunks this run stored."""
        return (self.chunks or 0) if self.status == "processed" else 0

    @property
    def skipped_count(self) -> int:
        """Chunks that were stored before."""
        return (self.chunks or 0) if self.status == "skipped" else 0

    def plain(self) -> dict[str, Any]:
        """What is known, as a task's result shows it."""
        known = {key: value for key, value in asdict(self).items() if value is not None and value != {}}
        counts = {"file_hash": self.hash, "stored_count": self.stored_count, "skipped_count": self.skipped_count}
        return {**known, "extractors": list(self.extractors), **counts}


@dataclass(frozen=True, slots=True)
class ProcessingReport:
    """How processing a dataset went, file by file."""

    strategy: str
    database: str
    files: Sequence[FileResult]

    def __str__(self) -> str:
        counts = {status: self.count(status) for status in get_args(FilePhase)}
        return ", ".join(f"{number} {status}" for status, number in counts.items() if number) or "no files"

    def count(self, status: FilePhase) -> int:
        """Files of one status."""
        return sum(result.status == status for result in self.files)

    def plain(self) -> dict[str, Any]:
        """The report as a task's result; each file as LlamaFarm's clients read it: whether it went well, and how."""
        return {
            **{f"{status}_files": self.count(status) for status in ("processed", "skipped", "failed")},
            "stored_count": sum(result.stored_count for result in self.files),
            "skipped_count": sum(result.skipped_count for result in self.files),
            "strategy": self.strategy,
            "database": self.database,
            "details": [
                [result.status != "failed", {**result.plain(), "result": {"filename": result.filename}}]
                for result in self.files
            ],
        }


class EveryFileFailed(TaskFailed):
    """No file of a run could be processed."""

    def __init__(self, report: ProcessingReport) -> None:
        count = len(report.files)
        first = next(result.error for result in report.files if result.error)
        message = (
            f"The file could not be processed: {first}"
            if count == 1
            else (f"None of the {count} files could be processed. The first: {first}")
        )
        super().__init__(message, report.plain())


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
        self._counts: Counter[FilePhase] = Counter({"pending": len(records)})
        self._changed = True

    def note(self, index: int, **changes: Any) -> None:
        """Records how far a file is."""
        before = self._results[index]
        self._results[index] = after = replace(before, **changes)
        self._counts[before.status] -= 1
        self._counts[after.status] += 1
        self._changed = True

    async def keep_telling(self) -> None:
        """Tells the task of every change, a few times a second at most, until cancelled."""
        # The more files, the longer what is told, so the rarer.
        pause = _SHORTEST_PAUSE * max(1.0, len(self._results) / 1000)
        while True:
            await self.tell()
            await asyncio.sleep(pause)

    async def tell(self) -> None:
        """Tells the task how far the run is, if that has changed since the last time."""
        if self._progress is not None and self._changed:
            self._changed = False
            meta = self.meta()
            await self._progress.report(meta["current"], meta["total"], meta["message"], meta["files"])

    def meta(self) -> dict[str, Any]:
        """How far the run is, as a task shows it."""
        ended = self._counts["processed"] + self._counts["skipped"] + self._counts["failed"]
        total = len(self._results)
        files = [
            {
                "index": index,
                "file_hash": result.hash,
                "filename": result.filename,
                "state": _TASK_STATES.get(result.status, result.status),
                "chunks": result.chunks or 0,
                "stored_count": result.stored_count,
                "skipped_count": result.skipped_count,
                **({"error": result.error} if result.error else {}),
            }
            for index, result in enumerate(self._results)
        ]
        message = f"Processed {total} files" if ended == total else f"Processed {ended} of {total} files"
        if self._counts["processing"]:
            message = f"Processing {ended + 1} of {total} files"
        return {"current": ended, "total": total, "message": message, "files": files}

    def report(self) -> ProcessingReport:
        """The results so far."""
        return ProcessingReport(self.strategy.name, self.collection.database, list(self._results))
