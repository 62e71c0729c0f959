"""Examples as folders: `{folder}/{name}/manifest.yaml`, a llamafarm.yaml, and files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from llamastead_server.adapters import yaml_files
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.config.rag import Rag
from llamastead_server.domain.config.section import Name
from llamastead_server.domain.errors import LlamasteadError, NotFound
from llamastead_server.domain.names import path_inside
from llamastead_server.domain.projects.examples import Example, ExampleDataset

_log = logging.getLogger("llamastead.examples")
_PIECE = 1 << 20


class _ManifestDataset(BaseModel):
    name: Name
    strategy: str | None = None
    database: str | None = None
    ingest: list[str] = []


class _ManifestConfig(BaseModel):
    yaml_path: str = "llamafarm.yaml"


class _Manifest(BaseModel):
    model_config = ConfigDict(populate_by_name=True, coerce_numbers_to_str=True)

    id: Name
    slug: str | None = None
    title: str | None = None
    description: str = ""
    primary_model: str = Field("", alias="primaryModel")
    tags: list[str] = []
    config: _ManifestConfig = _ManifestConfig()
    datasets: list[_ManifestDataset] = []


class ExampleCatalogue:
    """The examples of one folder; folders without a valid manifest are left out, with a line in the log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def list_examples(self) -> Sequence[Example]:
        """All examples, sorted by id."""
        return await asyncio.to_thread(self._read_all)

    async def get(self, example_id: str) -> Example:
        """One example, by its id or slug.

        Raises:
            NotFound: There is none; the message lists the ids.
        """
        examples = await self.list_examples()
        for example in examples:
            if example_id in (example.id, example.slug):
                return example
        known = ", ".join(example.id for example in examples) or "none"
        raise NotFound(f"Example {example_id[:100]!r} not found. Available: {known}.")

    async def content(self, path: Path) -> AsyncIterator[bytes]:
        """The content of one of an example's files."""
        with await asyncio.to_thread(path.open, "rb") as file:
            while data := await asyncio.to_thread(file.read, _PIECE):
                yield data

    def _read_all(self) -> list[Example]:
        found: dict[str, Example] = {}
        for manifest in sorted(self._folder.glob("*/manifest.yaml")):
            try:
                example = _read(manifest)
            except (OSError, ValueError, LlamasteadError) as error:
                _log.warning("the example %s is left out: %s", manifest.parent.name, error)
                continue
            found.setdefault(example.id, example)
        return sorted(found.values(), key=lambda example: example.id)


def _read(path: Path) -> Example:
    folder = path.parent
    manifest = _Manifest.model_validate(yaml_files.parse(path.read_bytes()))
    config_path = path_inside(folder, manifest.config.yaml_path)
    raw = yaml_files.parse(config_path.read_bytes())
    rag = ProjectConfig.parse({**raw, "datasets": []}).rag
    datasets = [_dataset(folder, entry, rag) for entry in manifest.datasets]
    files = {file for dataset in datasets for file in dataset.files}
    changed = max(file.stat().st_mtime for file in (path, config_path, *files))
    return Example(
        id=manifest.id,
        slug=manifest.slug or manifest.id,
        title=manifest.title or manifest.id,
        description=manifest.description,
        primary_model=manifest.primary_model,
        tags=manifest.tags,
        datasets=datasets,
        config=raw,
        data_size_bytes=sum(file.stat().st_size for file in files),
        project_size_bytes=config_path.stat().st_size,
        updated_at=datetime.fromtimestamp(changed, UTC),
    )


def _dataset(folder: Path, entry: _ManifestDataset, rag: Rag) -> ExampleDataset:
    """A dataset of the manifest; raises `NotFound` when the configuration has not what it names."""
    files = _files(folder, entry.ingest)
    return ExampleDataset(
        name=entry.name,
        strategy=rag.processing_strategy(entry.strategy or rag.strategy_names()[0]).name,
        database=rag.database(entry.database).name,
        patterns=entry.ingest,
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
    )


def _files(folder: Path, patterns: Sequence[str]) -> Sequence[Path]:
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sorted(path_inside(folder, str(file.relative_to(folder))) for file in found)
