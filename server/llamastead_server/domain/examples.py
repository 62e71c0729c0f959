"""Ready-made projects that come with the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from llamastead_server.domain.config import ProjectConfig
from llamastead_server.domain.datasets import Datasets
from llamastead_server.domain.ingestion import PROCESS_DATASET
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.projects import Projects
from llamastead_server.domain.tasks import TaskRunner

_MODEL = json.dumps("${model}")


@dataclass(frozen=True, slots=True)
class ExampleDataset:
    """A dataset of an example: its settings and its files."""

    name: str
    strategy: str | None
    database: str | None
    files: Sequence[Path]


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
class ImportedProject:
    """A project made from an example, and the tasks that process its datasets."""

    project: ProjectRef
    datasets: Sequence[str]
    task_ids: Sequence[str]


class Examples:
    """Lists examples and makes projects from them.

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

    async def import_project(self, example_id: str, ref: ProjectRef, *, process: bool) -> ImportedProject:
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
        filled = json.loads(json.dumps(example.config, default=str).replace(_MODEL, json.dumps(self._default_model())))
        config = ProjectConfig.parse({**filled, "namespace": ref.namespace, "name": ref.name, "datasets": []})
        await self._projects.add(ref, config)
        complete = False
        try:
            for dataset in example.datasets:
                await self._datasets.create(ref, dataset.name, strategy=dataset.strategy, database=dataset.database)
                for path in dataset.files:
                    await self._datasets.add_file(ref, dataset.name, path.name, None, self._source.content(path))
            tasks = [
                await self._tasks.submit(ref, PROCESS_DATASET, {"dataset": dataset.name})
                for dataset in example.datasets
                if process
            ]
            complete = True
        finally:
            if not complete:
                await asyncio.shield(self._projects.delete(ref))
        return ImportedProject(ref, [dataset.name for dataset in example.datasets], [task.id for task in tasks])
