"""Creating, reading, replacing and deleting projects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.errors import AlreadyExists, Conflict, InvalidRequest, NotFound
from llamastead_server.domain.named_locks import NamedLocks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Project, ProjectResource, ProjectStore
from llamastead_server.domain.projects.templates import Templates, TemplateSource


class Projects:
    """The projects of all namespaces.

    Args:
        store: Their configurations.
        templates: What new projects are made from.
        default_model: Gives the model that templates name.
        resources: What else belongs to projects, in the order it is deleted.
        filled_datasets: Gives the names of a project's datasets that hold files, and lets no file come while held.
    """

    def __init__(
        self,
        store: ProjectStore,
        templates: TemplateSource,
        default_model: Callable[[], str],
        resources: Sequence[ProjectResource],
        filled_datasets: Callable[[ProjectRef], AbstractAsyncContextManager[Collection[str]]],
    ) -> None:
        self._store = store
        self._templates = Templates(templates)
        self._default_model = default_model
        self._resources = resources
        self._filled_datasets = filled_datasets
        self._coming_and_going = NamedLocks()

    async def list_projects(self, namespace: str) -> Sequence[Project]:
        """The projects of a namespace by name, broken ones with their error."""
        return await self._store.list_projects(namespace)

    async def get(self, ref: ProjectRef) -> Project:
        """Raises `NotFound` when there is no such project."""
        return await self._store.get(ref)

    async def create(self, ref: ProjectRef, template: str | None = None) -> Project:
        """Makes a project from a template, by default the one called `default`.

        Raises:
            AlreadyExists: The name is taken.
            NotFound: There is no such template.
        """
        # A name that is taken is the first thing to say, whatever the template.
        await self._check_free(ref)
        return await self.add(ref, await self._templates.render(template, ref, model=self._default_model()))

    async def add(self, ref: ProjectRef, config: ProjectConfig) -> Project:
        """Makes a project with a configuration; raises `AlreadyExists` when the name is taken."""
        async with self._coming_and_going.held(ref):
            await self._check_free(ref)
            # What a project of this name left behind whose folder was removed by hand must not show up in this one.
            await self._delete_resources(ref)
            return await self._store.create(ref, config)

    async def update(self, ref: ProjectRef, change: Callable[[ProjectConfig], ProjectConfig]) -> Project:
        """Changes a project's configuration; concurrent changes are all kept.

        Raises:
            NotFound: There is no such project.
            Conflict: Its configuration is broken.
        """
        return await self._store.update(ref, change)

    async def replace(self, ref: ProjectRef, raw: Mapping[str, Any]) -> Project:
        """Replaces a project's configuration; keys that `raw` leaves out are gone.

        Raises:
            NotFound: There is no such project.
            InvalidRequest: The configuration names another project.
            ValidationFailed: It breaks a rule; nothing was written.
            Conflict: It leaves out a dataset that holds files, which nobody could reach or delete any more.
        """
        # A project that does not exist is the first thing to say, whatever the configuration holds.
        await self._store.get(ref)
        named = {"name": ref.name, "namespace": ref.namespace}
        for key, own in named.items():
            given = raw.get(key, own)
            if given != own:
                raise InvalidRequest(
                    f"The configuration's {key} is {given!r}, but this is project {ref}. Leave it out or correct it.",
                    details={"field": f"config.{key}"},
                )
        config = ProjectConfig.parse({**raw, **named})
        async with self._filled_datasets(ref) as filled:
            lost = set(filled) - {dataset.name for dataset in config.datasets}
            present = (await self._store.get(ref)).config
            if present is not None:
                # What the present file leaves out already is hidden, not lost.
                lost &= {dataset.name for dataset in present.datasets}
            if lost:
                raise Conflict(
                    f"The configuration leaves out datasets that hold files: {', '.join(sorted(lost))}. Keep them "
                    "under `datasets`, or delete them first.",
                    details={"field": "config.datasets"},
                )
            return await self._store.replace(ref, config)

    async def delete(self, ref: ProjectRef) -> Project:
        """Deletes a project with all that belongs to it, and gives it as it was.

        The folder goes last: a crash leaves a project that is still listed and can be deleted again.
        """
        async with self._coming_and_going.held(ref):
            project = await self._store.get(ref)
            await self._delete_resources(ref)
            await self._store.delete(ref)
            # What came in meanwhile goes too; nothing can come any more.
            await self._delete_resources(ref)
            return project

    async def _check_free(self, ref: ProjectRef) -> None:
        try:
            await self._store.get(ref)
        except NotFound:
            return
        raise AlreadyExists(f"Project {ref} already exists.")

    async def _delete_resources(self, ref: ProjectRef) -> None:
        for resource in self._resources:
            await resource.delete_project(ref)
