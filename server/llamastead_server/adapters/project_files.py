"""Projects as folders with a llamafarm.yaml that people may edit by hand."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from llamastead_server.adapters import yaml_files
from llamastead_server.adapters.file_change import carried_over
from llamastead_server.adapters.folder_sync import sync_folder
from llamastead_server.domain import names
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.errors import AlreadyExists, Conflict, InvalidRequest, NotFound
from llamastead_server.domain.named_locks import NamedLocks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Project

FILE_NAME = "llamafarm.yaml"
_CACHED = 1024
_CACHED_BYTES = 16 << 20
"""Size of the files whose content is held; in memory it takes some ten times as much."""
_DELETED = ".deleted-"

_Version = tuple[int, int, int]


class ProjectFiles:
    """Implements `domain.ports.ProjectStore` on `{folder}/{namespace}/{project}/llamafarm.yaml`.

    A project exists when its file does, and the file appears, changes and goes by one rename, so a kill at any
    moment leaves the old state or the new one. Files are read again only when they changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: OrderedDict[ProjectRef, tuple[_Version, Project]] = OrderedDict()
        self._locks = NamedLocks()

    async def sweep(self) -> None:
        """Removes what a crash left of deleted projects and half-written files; run before serving."""
        await asyncio.to_thread(self._sweep)

    async def list_projects(self, namespace: str) -> Sequence[Project]:
        """The projects of a namespace by name; an unknown namespace has none."""
        return await asyncio.to_thread(self._list, names.segment("namespace", namespace))

    async def get(self, ref: ProjectRef) -> Project:
        """Raises `NotFound` when there is no such project."""
        return await asyncio.to_thread(self._read, ref)

    async def config(self, ref: ProjectRef) -> ProjectConfig:
        """The valid configuration; raises `NotFound`, or `Conflict` naming what is wrong with the file."""
        return _valid(await self.get(ref))

    async def create(self, ref: ProjectRef, config: ProjectConfig) -> Project:
        """Makes a project.

        Raises:
            AlreadyExists: There is one of that name.
        """
        _check_name(ref, config)
        async with self._locks.held(ref):
            if await asyncio.to_thread(self._path(ref).exists):
                raise AlreadyExists(f"Project {ref} already exists.")
            return await asyncio.to_thread(self._write, ref, config)

    async def replace(self, ref: ProjectRef, config: ProjectConfig) -> Project:
        """Gives a project another configuration; keys it does not hold are gone, comments on what stays are kept."""
        _check_name(ref, config)
        async with self._locks.held(ref):
            await self.get(ref)
            return await asyncio.to_thread(self._revise, ref, config.plain())

    async def update(self, ref: ProjectRef, change: Callable[[ProjectConfig], ProjectConfig]) -> Project:
        """Applies a change under the project's lock, so that concurrent changes are all kept."""
        async with self._locks.held(ref):
            project = await self.get(ref)
            config = _valid(project)
            # A change is checked like a file: `model_copy` validates nothing.
            changed = ProjectConfig.parse(change(config).plain())
            _check_name(ref, changed)
            content = carried_over(project.raw, config.plain(), changed.plain())
            if ProjectConfig.parse(content) != changed:
                content = changed.plain()
            return await asyncio.to_thread(self._revise, ref, content)

    async def delete(self, ref: ProjectRef) -> None:
        """Removes the project's folder: at once from sight, then from disk."""
        async with self._locks.held(ref):
            await self.get(ref)
            self._cache.pop(ref, None)
            await asyncio.to_thread(self._remove, ref)

    def _path(self, ref: ProjectRef) -> Path:
        return self._folder / names.segment("namespace", ref.namespace) / names.segment("project", ref.name) / FILE_NAME

    def _list(self, namespace: str) -> Sequence[Project]:
        try:
            entries = sorted(entry.name for entry in (self._folder / namespace).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        projects = []
        for entry in entries:
            try:
                projects.append(self._read(names.project_ref(namespace, entry)))
            except (InvalidRequest, NotFound):
                continue
        return projects

    def _read(self, ref: ProjectRef) -> Project:
        path = self._path(ref)
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            cached = self._cache.get(ref)
            if cached is not None and cached[0] == version:
                return cached[1]
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"Project {ref} not found.") from None
        project = _project(ref, text, datetime.fromtimestamp(status.st_mtime, UTC))
        self._cache[ref] = (version, project)
        while len(self._cache) > _CACHED or (len(self._cache) > 1 and self._cached_bytes() > _CACHED_BYTES):
            self._cache.popitem(last=False)
        return project

    def _cached_bytes(self) -> int:
        return sum(size for (_, size, _), _ in tuple(self._cache.values()))

    def _write(self, ref: ProjectRef, config: ProjectConfig) -> Project:
        path = self._path(ref)
        path.parent.mkdir(parents=True, exist_ok=True)
        yaml_files.write(path, config.plain())
        return self._read(ref)

    def _revise(self, ref: ProjectRef, content: Mapping[str, Any]) -> Project:
        yaml_files.revise(self._path(ref), content)
        return self._read(ref)

    def _remove(self, ref: ProjectRef) -> None:
        folder = self._path(ref).parent
        aside = folder.parent / f"{_DELETED}{uuid4()}"
        folder.rename(aside)
        sync_folder(folder.parent)
        shutil.rmtree(aside)

    def _sweep(self) -> None:
        for left in self._folder.glob(f"*/{_DELETED}*"):
            shutil.rmtree(left)
        for left in self._folder.glob(f"*/*/{yaml_files.TEMPORARY}*"):
            left.unlink()


def _project(ref: ProjectRef, text: bytes, modified: datetime) -> Project:
    raw: Mapping[str, Any] = {}
    try:
        raw = yaml_files.parse(text)
        config = ProjectConfig.parse(raw)
        _check_name(ref, config)
    except InvalidRequest as error:
        return Project(ref, None, raw, error.message, modified)
    return Project(ref, config, raw, None, modified)


def _check_name(ref: ProjectRef, config: ProjectConfig) -> None:
    if (config.namespace, config.name) != ref:
        raise InvalidRequest(
            f"The configuration is of project {config.namespace}/{config.name}, but its place is {ref}.",
            details={"field": "name" if config.name != ref.name else "namespace"},
        )


def _valid(project: Project) -> ProjectConfig:
    if project.config is None:
        raise Conflict(
            f"Project {project.ref} can't be used until its {FILE_NAME} is put right: {project.validation_error}",
            details={"project": str(project.ref)},
        )
    return project.config
