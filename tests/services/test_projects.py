from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Value

from llamastead.v1 import project_pb2
from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.adapters.project_templates import ProjectTemplates
from llamastead_server.domain.errors import InvalidRequest, ValidationFailed
from llamastead_server.domain.ports import Project
from llamastead_server.domain.projects.projects import Projects
from llamastead_server.services import plain
from llamastead_server.services.projects import ProjectServicer, project_message

# These calls use nothing of their context.
CONTEXT = cast("grpc.aio.ServicerContext[Any, Any]", None)
NAMES = {"namespace": "org", "project": "bot"}


@asynccontextmanager
async def no_datasets(ref: object) -> AsyncIterator[list[str]]:
    yield []


@pytest.fixture
def service(tmp_path: Path) -> ProjectServicer:
    templates = ProjectTemplates(tmp_path / "templates")
    return ProjectServicer(Projects(ProjectFiles(tmp_path / "projects"), templates, lambda: "tiny", (), no_datasets))


async def test_a_long_list_is_not_made_on_the_event_loop(
    service: ProjectServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        await service.CreateProject(project_pb2.CreateProjectRequest(namespace="org", name=name), CONTEXT)
    threads = []

    def made(project: Project) -> project_pb2.Project:
        threads.append(threading.current_thread())
        return project_message(project)

    monkeypatch.setattr("llamastead_server.services.projects.project_message", made)
    listed = await service.ListProjects(project_pb2.ListProjectsRequest(namespace="org"), CONTEXT)
    assert [project.name for project in listed.projects] == ["one", "two"]
    assert threads
    assert threading.main_thread() not in threads


async def test_a_projects_life(service: ProjectServicer) -> None:
    created = await service.CreateProject(project_pb2.CreateProjectRequest(namespace="org", name="bot"), CONTEXT)
    assert (created.project.namespace, created.project.name) == ("org", "bot")
    assert created.project.last_modified.endswith("+00:00")
    listed = await service.ListProjects(project_pb2.ListProjectsRequest(namespace="org"), CONTEXT)
    assert (listed.total, list(listed.projects)) == (1, [created.project])
    got = await service.GetProject(project_pb2.GetProjectRequest(**NAMES), CONTEXT)
    deleted = await service.DeleteProject(project_pb2.DeleteProjectRequest(**NAMES), CONTEXT)
    assert got.project == deleted.project == created.project
    assert (await service.ListProjects(project_pb2.ListProjectsRequest(namespace="org"), CONTEXT)).total == 0


async def test_whole_numbers_stay_whole_in_the_file(service: ProjectServicer, tmp_path: Path) -> None:
    await service.CreateProject(project_pb2.CreateProjectRequest(namespace="org", name="bot"), CONTEXT)
    config = {"version": "v1", "runtime": {"model": "x", "model_api_parameters": {"top_k": 5, "top_p": 0.5}}}
    request = project_pb2.UpdateProjectRequest(namespace="org", project="bot", config=plain.to_struct(config))
    answer = await service.UpdateProject(request, CONTEXT)
    text = (tmp_path / "projects" / "org" / "bot" / "llamafarm.yaml").read_text()
    assert "top_k: 5\n" in text
    assert yaml.safe_load(text) == {**config, "name": "bot", "namespace": "org"}
    assert MessageToDict(answer.project.config) == {**config, "name": "bot", "namespace": "org"}


async def test_an_update_without_a_configuration_is_refused(service: ProjectServicer) -> None:
    with pytest.raises(ValidationFailed, match="config"):
        await service.UpdateProject(project_pb2.UpdateProjectRequest(namespace="org", project="bot"), CONTEXT)


async def test_numbers_that_are_not_finite_are_refused(service: ProjectServicer) -> None:
    request = project_pb2.UpdateProjectRequest(namespace="org", project="bot")
    request.config.fields["x"].CopyFrom(Value(number_value=float("nan")))
    with pytest.raises(InvalidRequest, match="not finite"):
        await service.UpdateProject(request, CONTEXT)


async def test_a_broken_file_is_shown_with_its_error(service: ProjectServicer, tmp_path: Path) -> None:
    await service.CreateProject(project_pb2.CreateProjectRequest(namespace="org", name="bot"), CONTEXT)
    (tmp_path / "projects" / "org" / "bot" / "llamafarm.yaml").write_text("version: v1\nruntime: {}\n")
    project = (await service.GetProject(project_pb2.GetProjectRequest(**NAMES), CONTEXT)).project
    assert "runtime" in project.validation_error
    assert MessageToDict(project.config) == {"version": "v1", "runtime": {}}
