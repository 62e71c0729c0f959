"""Datasets: named sets of files that are processed into one database of their project.

A dataset's settings live in llamafarm.yaml; its files are records and content-addressed blobs.
"""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from llamastead_server.domain import names
from llamastead_server.domain.config.project import DatasetConfig, ProjectConfig
from llamastead_server.domain.datasets.dataset import AddedFile, Dataset, Overrides
from llamastead_server.domain.datasets.file_removal import FileRemoval
from llamastead_server.domain.datasets.files import (
    BlobStore,
    DatasetLocks,
    FileRecord,
    FileStore,
    IndexedChunks,
    Upload,
)
from llamastead_server.domain.datasets.parsing_rules import rules_of
from llamastead_server.domain.errors import AlreadyExists, Conflict, InvalidRequest, LlamasteadError, NotFound
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Clock, ProjectStore, VectorStore

_log = logging.getLogger("llamastead.datasets")


class Datasets:
    """Makes, lists, fills and deletes datasets.

    Args:
        projects: Where the datasets' settings live.
        files: The records of files.
        chunks: The chunks of processed files.
        blobs: The files' content.
        vectors: The index of the chunks.
        locks: Shared with `Ingestion`.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        projects: ProjectStore,
        files: FileStore,
        chunks: IndexedChunks,
        blobs: BlobStore,
        vectors: VectorStore,
        locks: DatasetLocks,
        clock: Clock,
    ) -> None:
        self._projects = projects
        self._files = files
        self._chunks = chunks
        self._blobs = blobs
        self._vectors = vectors
        self._locks = locks
        self._clock = clock
        self._removal = FileRemoval(files, chunks, blobs, vectors, locks)

    async def list_datasets(self, ref: ProjectRef) -> Sequence[Dataset]:
        """A project's datasets, in the order of its configuration."""
        config = await self._projects.config(ref)
        files: dict[str, list[FileRecord]] = {}
        for record in await self._files.list_files(ref):
            if record.visible:
                files.setdefault(record.dataset, []).append(record)
        return [Dataset(dataset, files.get(dataset.name, [])) for dataset in config.datasets]

    async def get(self, ref: ProjectRef, name: str) -> Dataset:
        """One dataset.

        Raises:
            NotFound: There is no such project or dataset.
        """
        config = (await self._projects.config(ref)).dataset(names.segment("dataset", name))
        return Dataset(config, [record for record in await self._files.list_files(ref, name) if record.visible])

    @asynccontextmanager
    async def filled(self, ref: ProjectRef) -> AsyncIterator[Collection[str]]:
        """Names of the datasets that hold files, configured or not; no file comes while the block runs."""
        async with self._locks.blobs(ref):
            yield await self._files.filled_datasets(ref)

    async def strategies(self, ref: ProjectRef) -> tuple[Sequence[str], Sequence[str]]:
        """The processing strategies and the databases a dataset of this project may name."""
        rag = (await self._projects.config(ref)).rag
        return rag.strategy_names(), [database.name for database in rag.databases]

    async def create(
        self,
        ref: ProjectRef,
        name: str,
        *,
        strategy: str | None = None,
        database: str | None = None,
        auto_process: bool | None = None,
    ) -> Dataset:
        """Adds an empty dataset to the project's configuration.

        Args:
            ref: The project.
            name: Name of the dataset, unique in the project whatever its case.
            strategy: Processing strategy; by default the project's first.
            database: Database; by default the project's default one.
            auto_process: Whether uploads are processed at once.

        Raises:
            InvalidRequest: The name is bad, or the strategy or the database is not configured.
            AlreadyExists: The name is taken.
        """
        names.segment("dataset", name)

        def add(config: ProjectConfig) -> ProjectConfig:
            if any(dataset.name.lower() == name.lower() for dataset in config.datasets):
                raise AlreadyExists(f"Dataset {name!r} exists already in project {ref}.")
            try:
                chosen = config.rag.processing_strategy(strategy or config.rag.strategy_names()[0]).name
                target = config.rag.database(database).name
            except NotFound as error:
                raise InvalidRequest(error.message, details=error.details) from None
            settings: dict[str, Any] = {"name": name, "data_processing_strategy": chosen, "database": target}
            if auto_process is not None:
                settings["auto_process"] = auto_process
            return config.model_copy(update={"datasets": [*config.datasets, DatasetConfig.model_validate(settings)]})

        await self._projects.update(ref, add)
        return await self.get(ref, name)

    async def add_file(
        self,
        ref: ProjectRef,
        dataset: str,
        filename: str,
        mime_type: str | None,
        content: AsyncIterator[bytes],
        parser_overrides: Overrides = lambda: None,
    ) -> AddedFile:
        """Stores a file; of content the dataset holds already, only the parser overrides are taken.

        The file is durable when this returns, and leaves no trace when it fails.

        Args:
            ref: The project.
            dataset: The dataset.
            filename: Name of the file.
            mime_type: Its media type, if the client named one.
            content: Its content as it comes.
            parser_overrides: Asked after the content for settings that replace those of the file's parser.

        Raises:
            NotFound: There is no such project or dataset; raised before any content is read.
            PayloadTooLarge: The content is longer than the server accepts.
            ValidationFailed: The overrides are not settings of the parser that takes the file.
        """
        await self._open_dataset(ref, dataset)
        shown = names.file_name(filename)
        guessed = mime_type if mime_type not in (None, "", "application/octet-stream") else None
        async with self._blobs.receive(ref) as upload:
            async for data in content:
                await upload.write(data)
            digest, size = await upload.finish()
            record = FileRecord(
                project=ref,
                dataset=dataset,
                hash=digest,
                filename=shown,
                mime_type=(guessed or mimetypes.guess_type(shown)[0] or "application/octet-stream")[:255],
                size=size,
                uploaded_at=self._clock(),
                status="uploading",
            )
            if (overrides := parser_overrides()) is not None:
                rules_of(await self._projects.config(ref), dataset).settings(shown, record.mime_type, overrides)
                record = replace(record, parser_overrides=overrides)
            added = await self._shelve(record, upload)
            if added is None:
                # The same content is just being removed: when that is done, it can be added again.
                async with self._locks.file(ref, dataset, digest):
                    added = await self._shelve(record, upload)
        if added is None:
            raise Conflict(f"The file {shown!r} could not be removed before; remove it again, then upload it.")
        return added

    async def remove_file(self, ref: ProjectRef, dataset: str, file_hash: str, *, from_disk: bool) -> int:
        """Removes a file's chunks from the database and the file from the dataset; returns the number of chunks.

        Args:
            ref: The project.
            dataset: The dataset.
            file_hash: SHA-256 of the content, in hex.
            from_disk: Whether the content goes too, unless another dataset of the project holds it.

        Raises:
            NotFound: There is no such project, dataset or file.
        """
        digest = names.file_hash(file_hash)
        await self._open_dataset(ref, dataset)
        async with self._locks.file(ref, dataset, digest):
            record = await self._files.get(ref, dataset, digest)
            if record is None or record.status == "uploading":
                raise NotFound(f"Dataset {dataset!r} holds no file with the hash {digest}.")
            return await self._removal.remove(record, erase=from_disk or record.status == "erasing")

    async def delete(self, ref: ProjectRef, name: str) -> Dataset:
        """Deletes a dataset with its chunks and files and returns it as it was; a run over it is stopped.

        One that is not configured any more can be deleted too, while it holds files.

        Raises:
            NotFound: There is no such project or dataset.
        """
        await self._existing(ref, name)
        with self._locks.ending(ref, name):
            async with self._locks.run(ref, name):
                dataset = await self._existing(ref, name)
                await self._removal.remove_dataset(ref, name)
                if any(entry.name == name for entry in (await self._projects.config(ref)).datasets):
                    await self._projects.update(ref, _without(name))
        return dataset

    async def delete_project(self, ref: ProjectRef) -> None:
        """Removes all vectors, chunks and file records of a project; its folder holds the blobs."""
        with self._locks.ending(ref):
            datasets = {record.dataset for record in await self._files.list_files(ref)}
            for dataset in datasets.union(self._locks.running(ref)):
                async with self._locks.run(ref, dataset):
                    pass
            async with self._locks.blobs(ref):
                await self._vectors.drop(ref)
                await self._chunks.remove_project(ref)
                await self._files.remove_project(ref)

    async def reconcile(self) -> None:
        """Puts right what a crash left half done; call it once, before anything else touches datasets."""
        await self._blobs.sweep()
        for record in await self._files.interrupted():
            try:
                await self._removal.put_right(record)
            except LlamasteadError as error:
                _log.warning(
                    "file %s of %s/%s stays %s: %s",
                    record.hash, record.project, record.dataset, record.status, error.message,
                )  # fmt: skip

    async def _existing(self, ref: ProjectRef, name: str) -> Dataset:
        try:
            return await self.get(ref, name)
        except NotFound:
            # Not of a project whose file is broken or gone, which says nothing about its datasets.
            await self._projects.config(ref)
            left = await self._files.list_files(ref, name)
            if not left:
                raise
            return Dataset(DatasetConfig(name=name, database=""), [record for record in left if record.visible])

    async def _open_dataset(self, ref: ProjectRef, name: str) -> None:
        (await self._projects.config(ref)).dataset(names.segment("dataset", name))
        if self._locks.is_ending(ref, name):
            raise Conflict(f"Dataset {name!r} is being deleted.")

    async def _shelve(self, record: FileRecord, upload: Upload) -> AddedFile | None:
        """Gives uploaded content its record and its place; `None` when a record of it is being removed."""
        async with self._locks.blobs(record.project):
            await self._open_dataset(record.project, record.dataset)
            existing = await self._files.add(record)
            if existing is not None and existing.status in ("deleting", "erasing"):
                return None
            if existing is not None and existing.visible:
                if record.parser_overrides is not None:
                    await self._files.override(
                        existing.project, existing.dataset, existing.hash, record.parser_overrides
                    )
                gone = not await self._blobs.exists(record.project, record.hash)
                if gone:
                    await upload.keep()
                return AddedFile(existing, skipped=not gone)
            await upload.keep()
            stored = replace(record, status="uploaded")
            await self._files.put(stored)
            return AddedFile(stored, skipped=False)


def _without(name: str) -> Callable[[ProjectConfig], ProjectConfig]:
    def remove(config: ProjectConfig) -> ProjectConfig:
        return config.model_copy(update={"datasets": [dataset for dataset in config.datasets if dataset.name != name]})

    return remove
