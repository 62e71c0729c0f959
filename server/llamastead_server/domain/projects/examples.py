"""Ready-made projects that come with the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from llamastead_server.domain import names
from llamastead_server.domain.config.project import DatasetConfig, ProjectConfig
from llamastead_server.domain.datasets.datasets import Datasets
from llamastead_server.domain.datasets.ingestion import PROCESS_DATASET
from llamastead_server.domain.errors import NotFound
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.projects.example_merge import Additions, additions
from llamastead_server.domain.projects.projects import Projects
from llamastead_server.domain.tasks.tasks import TaskRunner

_MODEL = json.dumps("${model}")


@dataclass(frozen=True, slots=True)
class ExampleDataset:
    """A dataset of an example.

    Attributes:
        name: Its name.
        strategy: Its data processing strategy.
        database: Its database.
        patterns: What the manifest says its files are.
        files: Its files.
        size_bytes: Size of the files.
    """

    name: str
    strategy: str
    database: str
    patterns: Sequence[str]
    files: Sequence[Path]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Example:
    """An example project.

    Attributes:
        id: Id to import it by.
        slug: Name for URLs.
        title: Name for people.
        description: What it shows.
        primary_model: Model it is made for; empty: the server's default.
        tags: Words to find it by.
        datasets: Its datasets.
        config: Its llamafarm.yaml; `${model}` stands for the server's default model.
        data_size_bytes: Size of its files.
        project_size_bytes: Size of its configuration.
        updated_at: When it last changed, in UTC.
    """

    id: str
    slug: str
    title: str
    description: str
    primary_model: str
    tags: Sequence[str]
    datasets: Sequence[ExampleDataset]
    config: Mapping[str, Any]
    data_size_bytes: int
    project_size_bytes: int
    updated_at: datetime


class ExampleSource(Protocol):
    """Where examples come from."""

    async def list_examples(self) -> Sequence[Example]:
        """All examples, sorted by id."""
        ...

    async def get(self, example_id: str) -> Example:
        """One example; raises `NotFound`."""
        ...

    def content(self, path: Path) -> AsyncIterator[bytes]:
        """The content of one of an example's files."""
        ...


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made: datasets of a project, and the tasks that process them."""

    project: ProjectRef
    datasets: Sequence[str]
    task_ids: Sequence[str]


class Examples:
    """Lists examples and imports them.

    Args:
        source: The examples.
        projects: Where projects are made.
        datasets: Where their files go.
        tasks: What processes them.
        default_model: Gives the model that `${model}` stands for.
    """

    def __init__(
        self,
        source: ExampleSource,
        projects: Projects,
        datasets: Datasets,
        tasks: TaskRunner,
        *,
        default_model: Callable[[], str],
    ) -> None:
        self._source = source
        self._projects = projects
        self._datasets = datasets
        self._tasks = tasks
        self._default_model = default_model

    async def list_examples(self) -> Sequence[Example]:
        """All examples, sorted by id."""
        return [
            replace(example, primary_model=example.primary_model or self._default_model())
            for example in await self._source.list_examples()
        ]

    async def get(self, example_id: str) -> Example:
        """One example, by its id or slug; raises `NotFound`."""
        return await self._source.get(example_id)

    async def import_project(self, example_id: str, ref: ProjectRef, *, process: bool) -> Imported:
        """Makes a project from an example; when that fails half way, nothing of it stays.

        Args:
            example_id: The example.
            ref: Name of the new project.
            process: Whether its datasets are processed, as tasks.

        Raises:
            NotFound: There is no such example.
            AlreadyExists: There is such a project.
        """
        example = await self._source.get(example_id)
        config = self._config(example, ref)
        complete = ProjectConfig.parse(
            {**config.plain(), "datasets": [_dataset(entry).model_dump() for entry in example.datasets]}
        )
        await self._projects.add(ref, complete)
        done = False
        try:
            for dataset in example.datasets:
                await self._add_files(ref, dataset.name, dataset.files, [])
            imported = await self._process(ref, [dataset.name for dataset in example.datasets], process)
            done = True
        finally:
            if not done:
                await asyncio.shield(self._projects.delete(ref))
        return imported

    async def finish_project(self, example_id: str, ref: ProjectRef) -> Imported | None:
        """Finishes the import of a project that a kill cut short, which none of its files being processed tells.

        Returns:
            What is processed now; `None` when the import was complete, and nothing was done.

        Raises:
            NotFound: There is no such example or project.
            Conflict: The project's configuration is broken.
        """
        example = await self._source.get(example_id)
        there = {dataset.config.name: dataset.files for dataset in await self._datasets.list_datasets(ref)}
        if any(record.status != "uploaded" for files in there.values() for record in files):
            return None
        missing = [dataset for dataset in example.datasets if dataset.name in there]
        for dataset in missing:
            await self._add_files(ref, dataset.name, dataset.files, [])
        return await self._process(ref, [dataset.name for dataset in missing], process=True)

    async def import_data(
        self, example_id: str, ref: ProjectRef, *, include_strategies: bool, process: bool
    ) -> Imported:
        """Adds an example's datasets to a project; when that fails half way, nothing of it stays.

        Args:
            example_id: The example.
            ref: The project.
            include_strategies: Whether strategies and databases that the datasets need are added too.
            process: Whether the datasets are processed, as tasks.

        Raises:
            NotFound: There is no such example or project.
            Conflict: The project has something of the same name that differs, or its configuration is broken.
            InvalidRequest: Something is missing and may not be added.
        """
        example = await self._source.get(example_id)
        wanted = [(dataset.name, dataset) for dataset in example.datasets]
        return await self._import(example, ref, wanted, include_strategies, process)

    async def import_dataset(
        self,
        example_id: str,
        dataset: str,
        ref: ProjectRef,
        *,
        target: str | None,
        include_strategies: bool,
        process: bool,
    ) -> tuple[Imported, int]:
        """Adds one of an example's datasets, as `import_data` does all; gives the number of its files too."""
        example = await self._source.get(example_id)
        found = next((entry for entry in example.datasets if entry.name == dataset), None)
        if found is None:
            known = ", ".join(entry.name for entry in example.datasets) or "none"
            raise NotFound(f"Example {example.id!r} has no dataset {dataset[:100]!r}. It has: {known}.")
        name = names.segment("dataset", target or found.name)
        return await self._import(example, ref, [(name, found)], include_strategies, process), len(found.files)

    async def _import(
        self,
        example: Example,
        ref: ProjectRef,
        wanted: Sequence[tuple[str, ExampleDataset]],
        include_strategies: bool,
        process: bool,
    ) -> Imported:
        source = self._config(example, ref)
        configs = [_dataset(dataset, name) for name, dataset in wanted]
        added = Additions()

        def extend(config: ProjectConfig) -> ProjectConfig:
            nonlocal added
            added = additions(config, source, configs, include_strategies=include_strategies)
            return added.added_to(config)

        await self._projects.update(ref, extend)
        async with self._undone_on_failure(ref, added) as new_files:
            for name, dataset in wanted:
                await self._add_files(ref, name, dataset.files, new_files)
            return await self._process(ref, [name for name, _ in wanted], process)

    @asynccontextmanager
    async def _undone_on_failure(self, ref: ProjectRef, added: Additions) -> AsyncIterator[list[tuple[str, str]]]:
        """Gives a list for what is added; takes all of it and the additions back unless the block ends well."""
        new_files: list[tuple[str, str]] = []
        done = False
        try:
            yield new_files
            done = True
        finally:
            if not done:
                # A project that somebody deleted meanwhile has nothing left to undo.
                with suppress(NotFound):
                    await asyncio.shield(self._undo(ref, added, new_files))

    async def _undo(self, ref: ProjectRef, added: Additions, new_files: Sequence[tuple[str, str]]) -> None:
        new_datasets = {dataset.name for dataset in added.datasets}
        for dataset in new_datasets:
            await self._datasets.delete(ref, dataset)
        for dataset, digest in new_files:
            if dataset not in new_datasets:
                await self._datasets.remove_file(ref, dataset, digest, from_disk=True)
        await self._projects.update(ref, added.taken_from)

    async def _add_files(
        self, ref: ProjectRef, dataset: str, files: Sequence[Path], new: list[tuple[str, str]]
    ) -> None:
        """Adds files to a dataset, and to `new` those it did not hold."""
        for path in files:
            file = await self._datasets.add_file(ref, dataset, path.name, None, self._source.content(path))
            if not file.skipped:
                new.append((dataset, file.record.hash))

    async def _process(self, ref: ProjectRef, datasets: Sequence[str], process: bool) -> Imported:
        tasks = [await self._tasks.submit(ref, PROCESS_DATASET, {"dataset": name}) for name in datasets if process]
        return Imported(ref, datasets, [task.id for task in tasks])

    def _config(self, example: Example, ref: ProjectRef) -> ProjectConfig:
        filled = json.loads(json.dumps(example.config, default=str).replace(_MODEL, json.dumps(self._default_model())))
        return ProjectConfig.parse({**filled, "namespace": ref.namespace, "name": ref.name, "datasets": []})


def _dataset(dataset: ExampleDataset, name: str | None = None) -> DatasetConfig:
    return DatasetConfig(
        name=name or dataset.name, data_processing_strategy=dataset.strategy, database=dataset.database
    )
