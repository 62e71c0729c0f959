"""Databases: the searchable collections of a project, from their configuration to what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from llamastead_server.domain import names
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.files import DatasetLocks
from llamastead_server.domain.errors import AlreadyExists, Conflict, InvalidRequest, LlamasteadError, ValidationFailed
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Embedder, ProjectStore, VectorStore
from llamastead_server.domain.retrieval.database_views import (
    DatabaseContents,
    DatabaseView,
    Document,
    Stats,
    served_otherwise,
)
from llamastead_server.domain.retrieval.embedding_choice import choose_embedder
from llamastead_server.domain.retrieval.hidden_datasets import hidden_datasets
from llamastead_server.domain.retrieval.retriever import ChunkStore

LARGEST_PAGE = 1000
_LARGEST_OFFSET = 2**31 - 1
_ASKING_SECONDS = 5.0


class Databases:
    """Makes, changes, describes, empties and deletes databases.

    Args:
        projects: Where they are configured.
        chunks: What they were made with.
        contents: What they hold.
        vectors: Their vectors.
        embedder: The embedder.
        locks: Shared with `Datasets` and `Ingestion`.
    """

    def __init__(
        self,
        projects: ProjectStore,
        chunks: ChunkStore,
        contents: DatabaseContents,
        vectors: VectorStore,
        embedder: Embedder,
        locks: DatasetLocks,
    ) -> None:
        self._projects = projects
        self._chunks = chunks
        self._contents = contents
        self._vectors = vectors
        self._embedder = embedder
        self._locks = locks

    async def list_databases(self, ref: ProjectRef) -> tuple[Sequence[DatabaseView], str | None]:
        """A project's databases, in the order of its configuration, and the name of the default one."""
        config = await self._projects.config(ref)
        made_with = await self._chunks.embeddings(ref)
        names = [entry.name for entry in config.rag.databases]
        # At once, so that an embedder that does not answer is waited for once.
        views = await asyncio.gather(*(self._view(config, name, made_with.get(name)) for name in names))
        return views, config.rag.default_name

    async def get(self, ref: ProjectRef, database: str | None) -> DatabaseView:
        """One database; `None` is the default one. Raises `NotFound` when there is no such project or database."""
        config = await self._projects.config(ref)
        name = config.rag.database(database).name
        return await self._view(config, name, await self._chunks.embedding_of(ref, name))

    async def create(self, ref: ProjectRef, raw: Mapping[str, Any]) -> DatabaseView:
        """Adds a database to the project's configuration.

        Raises:
            ValidationFailed: It breaks a rule; nothing was written.
            AlreadyExists: The name is taken.
        """
        name = raw.get("name")
        if not isinstance(name, str) or not name:
            raise ValidationFailed("Give the database a name.", details={"name": "is missing"})
        names.segment("database", name)

        def add(config: ProjectConfig) -> ProjectConfig:
            if any(entry.name == name for entry in config.rag.databases):
                raise AlreadyExists(f"Database {name!r} exists already in project {ref}.")
            return _with_databases(config, lambda entries: [*entries, dict(raw)])

        await self._projects.update(ref, add)
        return await self.get(ref, name)

    async def update(self, ref: ProjectRef, database: str, change: Mapping[str, Any]) -> DatabaseView:
        """Replaces the keys of a database that `change` holds; a key that is `None` is removed.

        Raises:
            NotFound: There is no such project or database.
            InvalidRequest: The change would rename it.
            ValidationFailed: It breaks a rule; nothing was written.
        """
        if change.get("name", database) != database:
            raise InvalidRequest(
                f"A database can't be renamed: leave `name` out, or make a new one instead of {database!r}.",
                details={"field": "name"},
            )

        def merge(config: ProjectConfig) -> ProjectConfig:
            config.rag.database(database)

            def changed(entry: Mapping[str, Any]) -> Mapping[str, Any]:
                if entry["name"] != database:
                    return entry
                return {key: value for key, value in {**entry, **change}.items() if value is not None}

            return _with_databases(config, lambda entries: [changed(entry) for entry in entries])

        await self._projects.update(ref, merge)
        return await self.get(ref, database)

    async def delete(self, ref: ProjectRef, database: str, *, collection: bool = True) -> tuple[DatabaseView, int]:
        """Deletes a database that no dataset goes into: its vectors, its chunks, then its configuration.

        Args:
            ref: The project.
            database: Its name.
            collection: Whether vectors and chunks go too.

        Returns:
            The database as it was, and the number of chunks removed.

        Raises:
            NotFound: There is no such project or database.
            Conflict: Datasets go into it.
        """
        view = await self.get(ref, database)

        def remove(config: ProjectConfig) -> ProjectConfig:
            _check_free(config, database)
            return _with_databases(config, lambda entries: [entry for entry in entries if entry["name"] != database])

        # What can't be deleted is said before anything is lost.
        remove(await self._projects.config(ref))
        removed = await self._empty(ref, database) if collection else 0
        await self._projects.update(ref, remove)
        return view, removed

    async def clear(self, ref: ProjectRef, database: str | None) -> tuple[str, int]:
        """Removes all chunks from a database; returns its name and how many there were.

        Raises:
            NotFound: There is no such project or database.
            Conflict: One of its datasets is being processed.
        """
        config = await self._projects.config(ref)
        name = config.rag.database(database).name
        datasets = [dataset.name for dataset in config.datasets if dataset.database == name]
        busy = [dataset for dataset in datasets if self._locks.is_running(ref, dataset)]
        if busy:
            raise Conflict(f"Database {name!r} can't be cleared while dataset {busy[0]!r} is being processed.")
        async with held(self._locks, ref, datasets):
            return name, await self._empty(ref, name)

    async def documents(self, ref: ProjectRef, database: str | None, *, limit: int, offset: int) -> Sequence[Document]:
        """A part of a database's documents, by name.

        Raises:
            NotFound: There is no such project or database.
            ValidationFailed: A number is out of its range.
        """
        ranges = (("limit", limit, 1, LARGEST_PAGE), ("offset", offset, 0, _LARGEST_OFFSET))
        wrong = {
            name: f"must be between {least} and {most}"
            for name, value, least, most in ranges
            if not least <= value <= most
        }
        if wrong:
            raise ValidationFailed(" ".join(f"{name} {reason}." for name, reason in wrong.items()), details=wrong)
        config = await self._projects.config(ref)
        name = config.rag.database(database).name
        hidden = await hidden_datasets(config, self._chunks, ref)
        return await self._contents.documents(ref, name, limit, offset, without=hidden)

    async def stats(self, ref: ProjectRef, database: str | None) -> Stats:
        """How much a database holds.

        Raises:
            NotFound: There is no such project or database.
            Unavailable: The vector store is down, or the embedder is and the database is new.
        """
        project = await self._projects.config(ref)
        config = project.rag.database(database)
        made_with = await self._chunks.embedding_of(ref, config.name)
        if made_with is None:
            embedder = (await choose_embedder(self._embedder, config)).embedder
            made_with = embedder.model, await embedder.dimension()
        hidden = await hidden_datasets(project, self._chunks, ref)
        vectors, size, contents = await asyncio.gather(
            self._vectors.count(ref, config.name),
            self._vectors.size_bytes(ref, config.name),
            self._contents.contents(ref, config.name, without=hidden),
        )
        if hidden:
            vectors = max(0, vectors - await self._chunks.chunk_count(ref, config.name, of=hidden))
        return Stats(config, contents, vectors, size, *made_with)

    async def _empty(self, ref: ProjectRef, database: str) -> int:
        await self._vectors.drop(ref, database)
        return await self._contents.remove_database(ref, database)

    async def _view(self, config: ProjectConfig, name: str, made_with: tuple[str, int] | None) -> DatabaseView:
        database = config.rag.database(name)
        notes = list(served_otherwise(database))
        model = None if made_with is None else made_with[0]
        try:
            async with asyncio.timeout(_ASKING_SECONDS):
                choice = await choose_embedder(self._embedder, database)
        except TimeoutError:
            notes.append("The embedder does not answer, so it can't be told whether the configured model is installed.")
        except LlamasteadError as error:
            notes.append(error.message)
        else:
            model = model or choice.embedder.model
            notes += [choice.note] if choice.note else []
        datasets = [dataset.name for dataset in config.datasets if dataset.database == name]
        return DatabaseView(database, name == config.rag.default_name, datasets, model, notes)


@asynccontextmanager
async def held(locks: DatasetLocks, ref: ProjectRef, datasets: Sequence[str]) -> AsyncIterator[None]:
    """Holds several datasets, always taken in the same order, so that none is processed meanwhile."""
    async with AsyncExitStack() as stack:
        for dataset in sorted(datasets):
            await stack.enter_async_context(locks.run(ref, dataset))
        yield


def _check_free(config: ProjectConfig, database: str) -> None:
    datasets = [dataset.name for dataset in config.datasets if dataset.database == database]
    if datasets:
        raise Conflict(
            f"Database {database!r} can't be deleted: the datasets {', '.join(datasets)} go into it. Delete them "
            "first, or give them another database.",
            details={"database": database, "datasets": ", ".join(datasets)},
        )


def _with_databases(
    config: ProjectConfig, change: Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]
) -> ProjectConfig:
    """The configuration with other databases, checked as a whole."""
    plain = config.plain()
    rag = dict(plain.get("rag") or {})
    rag["databases"] = change(rag.get("databases") or [])
    if rag.get("default_database") not in [entry["name"] for entry in rag["databases"]]:
        rag.pop("default_database", None)
    return ProjectConfig.parse({**plain, "rag": rag})
