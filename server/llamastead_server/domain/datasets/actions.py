"""What can be done to the files of a dataset that are there already."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamastead_server.domain import names
from llamastead_server.domain.datasets.file_removal import FileRemoval
from llamastead_server.domain.datasets.files import DatasetLocks, FileRecord, FileStore
from llamastead_server.domain.datasets.parsing_rules import rules_of
from llamastead_server.domain.errors import Conflict, LlamasteadError, NotFound
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import ProjectStore

_log = logging.getLogger("llamastead.datasets")


@dataclass(frozen=True, slots=True)
class ClearedChunks:
    """How removing the chunks of files went."""

    chunks: int
    files: int
    failed: int


class DatasetActions:
    """Changes how files are read, and takes their chunks away.

    Args:
        projects: Where the datasets' settings live.
        files: The records of files.
        removal: Removes chunks.
        locks: Shared with `Datasets` and `Ingestion`.
    """

    def __init__(self, projects: ProjectStore, files: FileStore, removal: FileRemoval, locks: DatasetLocks) -> None:
        self._projects = projects
        self._files = files
        self._removal = removal
        self._locks = locks

    async def override_parser(
        self, ref: ProjectRef, dataset: str, file_hash: str | None, overrides: Mapping[str, Any]
    ) -> None:
        """Sets the parser settings of one file, or of all; they hold until they are set again.

        Raises:
            NotFound: There is no such project, dataset or file.
            ValidationFailed: They are not settings of the parser that takes a file; then nothing is changed.
        """
        records = await self._chosen(ref, dataset, file_hash)
        rules = rules_of(await self._projects.config(ref), dataset)
        for record in records:
            rules.settings(record.filename, record.mime_type, overrides)
        if records:
            await self._files.override(ref, dataset, None if file_hash is None else records[0].hash, overrides)

    async def clear_chunks(self, ref: ProjectRef, dataset: str, file_hash: str | None = None) -> ClearedChunks:
        """Removes the chunks of one file, or of all, and leaves the files as they were uploaded.

        Raises:
            NotFound: There is no such project, dataset or file.
            Conflict: The whole dataset is meant and is being processed.
        """
        records = await self._chosen(ref, dataset, file_hash)
        if file_hash is None and self._locks.is_running(ref, dataset):
            raise Conflict(f"Dataset {dataset!r} is being processed: wait for its end, or cancel the task.")
        chunks = files = failed = 0
        for stale in records:
            try:
                async with self._locks.file(ref, dataset, stale.hash):
                    record = await self._files.get(ref, dataset, stale.hash)
                    if record is not None and record.visible:
                        chunks += await self._removal.unprocess(record)
                        files += 1
            except LlamasteadError as error:
                if file_hash is not None:
                    raise
                _log.warning("the chunks of %s in %s/%s stay: %s", stale.hash, ref, dataset, error.message)
                failed += 1
        return ClearedChunks(chunks, files, failed)

    async def _chosen(self, ref: ProjectRef, dataset: str, file_hash: str | None) -> Sequence[FileRecord]:
        (await self._projects.config(ref)).dataset(names.segment("dataset", dataset))
        if file_hash is None:
            return [record for record in await self._files.list_files(ref, dataset) if record.visible]
        digest = names.file_hash(file_hash)
        chosen = await self._files.get(ref, dataset, digest)
        if chosen is None or not chosen.visible:
            raise NotFound(f"Dataset {dataset!r} holds no file with the hash {digest}.")
        return [chosen]
