"""ProjectService over `domain.projects.projects`."""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.struct_pb2 import Struct

from llamastead.v1 import project_pb2, project_pb2_grpc
from llamastead_server.domain import names, ports
from llamastead_server.domain.access.rights import Principal
from llamastead_server.domain.errors import ValidationFailed
from llamastead_server.domain.projects.projects import Projects
from llamastead_server.services import plain


class ProjectServicer(project_pb2_grpc.ProjectServiceServicer):
    """Lists, creates, reads, replaces and deletes projects."""

    def __init__(self, projects: Projects) -> None:
        self._projects = projects

    async def ListProjects(
        self, request: project_pb2.ListProjectsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> project_pb2.ListProjectsResponse:
        """Lists the projects of a namespace that the caller may use."""
        found = await self._projects.list_projects(names.segment("namespace", request.namespace))
        caller: Principal | None = getattr(context, "principal", None)
        if caller is not None:
            found = [project for project in found if caller.may_use(project.ref)]
        # In a thread: for a thousand projects it would hold the event loop.
        projects = await asyncio.to_thread(lambda: [project_message(project) for project in found])
        return project_pb2.ListProjectsResponse(total=len(found), projects=projects)

    async def CreateProject(
        self, request: project_pb2.CreateProjectRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> project_pb2.CreateProjectResponse:
        """Creates a project from a template."""
        ref = names.project_ref(request.namespace, request.name)
        created = await self._projects.create(ref, request.config_template or None)
        return project_pb2.CreateProjectResponse(project=project_message(created))

    async def GetProject(
        self, request: project_pb2.GetProjectRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> project_pb2.GetProjectResponse:
        """Gives a project and its configuration."""
        project = await self._projects.get(names.project_ref(request.namespace, request.project))
        return project_pb2.GetProjectResponse(project=project_message(project))

    async def UpdateProject(
        self, request: project_pb2.UpdateProjectRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> project_pb2.UpdateProjectResponse:
        """Replaces a project's configuration."""
        ref = names.project_ref(request.namespace, request.project)
        if not request.HasField("config"):
            raise ValidationFailed("Give the whole new configuration as `config`.", details={"config": "is missing"})
        project = await self._projects.replace(ref, plain.from_struct(request.config))
        return project_pb2.UpdateProjectResponse(project=project_message(project))

    async def DeleteProject(
        self, request: project_pb2.DeleteProjectRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> project_pb2.DeleteProjectResponse:
        """Deletes a project with all that belongs to it."""
        project = await self._projects.delete(names.project_ref(request.namespace, request.project))
        return project_pb2.DeleteProjectResponse(project=project_message(project))


def project_message(project: ports.Project) -> project_pb2.Project:
    """A project as the contract shows it: the configuration as the file has it."""
    config: Struct = plain.to_struct(project.raw)
    return project_pb2.Project(
        namespace=project.ref.namespace,
        name=project.ref.name,
        config=config,
        validation_error=project.validation_error,
        last_modified=project.last_modified.isoformat() if project.last_modified else None,
    )
