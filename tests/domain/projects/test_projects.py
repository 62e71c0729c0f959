from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.adapters.project_templates import ProjectTemplates
from llamastead_server.domain.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    NotFound,
    ValidationFailed,
)
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.projects.projects import Projects

REF = ProjectRef("org", "bot")


class Resource:
    """Records what a deletion found."""

    def __init__(self, name: str, log: list[str], exists: Callable[[], bool]) -> None:
        self._name, self._log, self._exists = name, log, exists

    async def delete_project(self, ref: ProjectRef) -> None:
        self._log.append(f"{self._name} of {ref}, folder {'there' if self._exists() else 'gone'}")


@pytest.fixture
def log() -> list[str]:
    return []


@asynccontextmanager
async def filled(ref: ProjectRef) -> AsyncIterator[set[str]]:
    yield {"papers"} if ref.name == "library" else set()


@pytest.fixture
def projects(tmp_path: Path, log: list[str]) -> Projects:
    folder = tmp_path / "projects"
    resources = [Resource(name, log, (folder / "org" / "bot").exists) for name in ("vectors", "sessions")]
    templates = ProjectTemplates(tmp_path / "templates")
    return Projects(ProjectFiles(folder), templates, lambda: "tiny-llama", resources, filled)


@pytest.mark.parametrize("template", [None, "default", "server", "rag", "advanced"])
async def test_each_template_makes_a_valid_project_with_the_servers_model(
    projects: Projects, template: str | None
) -> None:
    project = await projects.create(REF, template)
    assert project.config is not None
    assert (project.raw["namespace"], project.raw["name"]) == REF
    assert project.config.runtime.select(None).model == "tiny-llama"
    assert bool(project.config.rag.databases) == (template in ("server", "rag", "advanced"))
    assert "${" not in str(project.raw)


async def test_the_rag_template_has_its_database_and_strategies(projects: Projects) -> None:
    config = (await projects.create(REF, "rag")).config
    assert config is not None
    database = config.rag.database(None)
    assert database.name == "main_db"
    default = database.retrieval_strategy(None)
    assert default is not None
    assert default.name == "hybrid"
    assert [strategy.name for strategy in database.retrieval_strategies] == ["hybrid", "vector", "keyword"]
    (parser,) = config.rag.processing_strategy("universal_processor").parsers
    assert not isinstance(parser, str)
    assert (parser.type, parser.config) == ("auto", {"chunk_size": 500, "chunk_overlap": 50})


async def test_an_unknown_template_is_not_found_and_the_known_ones_are_named(projects: Projects) -> None:
    with pytest.raises(NotFound, match=r"'absent' not found\. Available: default, rag, server"):
        await projects.create(REF, "absent")
    with pytest.raises(InvalidRequest):
        await projects.create(REF, "../secret")
    assert await projects.list_projects("org") == []


async def test_an_operators_own_template_is_used_and_checked(projects: Projects, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    own = tmp_path / "templates" / "own.yaml"
    own.write_text("runtime: {model: '${model}'}\nprompts: [{content: 'You serve ${namespace}.'}]\n")
    project = await projects.create(REF, "own")
    assert project.raw["prompts"] == [{"content": "You serve org."}]
    own.write_text("runtime: {}\n")
    with pytest.raises(Conflict, match="Template 'own' is wrong"):
        await projects.create(ProjectRef("org", "second"), "own")


async def test_a_taken_name_is_refused(projects: Projects) -> None:
    await projects.create(REF)
    with pytest.raises(AlreadyExists):
        await projects.create(REF, "rag")


async def test_replacing_forces_the_name_of_the_path(projects: Projects) -> None:
    await projects.create(REF, "rag")
    raw = {"version": "v1", "runtime": {"model": "x"}}
    replaced = await projects.replace(REF, raw)
    assert replaced.raw == {**raw, "name": "bot", "namespace": "org"}
    for other in ({"name": "other"}, {"namespace": "other"}, {"name": None}, {"name": ["bot"]}):
        with pytest.raises(InvalidRequest, match="this is project org/bot"):
            await projects.replace(REF, {**raw, **other})
    assert (await projects.get(REF)).raw == replaced.raw


async def test_a_configuration_that_breaks_a_rule_changes_nothing(projects: Projects) -> None:
    before = await projects.create(REF)
    with pytest.raises(ValidationFailed, match="runtime"):
        await projects.replace(REF, {"version": "v1"})
    assert await projects.get(REF) == before


async def test_replacing_an_unknown_project_is_not_found(projects: Projects) -> None:
    with pytest.raises(NotFound):
        await projects.replace(REF, {"version": "v9"})


async def test_deleting_takes_everything_then_the_folder_then_what_came_meanwhile(
    projects: Projects, log: list[str]
) -> None:
    created = await projects.create(REF)
    log.clear()
    assert await projects.delete(REF) == created
    there, gone = (
        [f"{name} of org/bot, folder {state}" for name in ("vectors", "sessions")] for state in ("there", "gone")
    )
    assert log == [*there, *gone]
    with pytest.raises(NotFound):
        await projects.get(REF)
    with pytest.raises(NotFound):
        await projects.delete(REF)


async def test_a_new_project_begins_without_what_one_of_its_name_left_behind(
    projects: Projects, log: list[str]
) -> None:
    await projects.create(REF)
    assert log == ["vectors of org/bot, folder gone", "sessions of org/bot, folder gone"]


async def test_a_configuration_may_not_lose_datasets_that_hold_files(projects: Projects) -> None:
    ref = ProjectRef("org", "library")
    await projects.create(ref, "rag")
    raw = {"version": "v1", "runtime": {"model": "x"}}
    kept = {**raw, "datasets": [{"name": "papers", "database": "main_db"}]}
    # The present configuration lacks it already, so that nothing more is lost.
    assert "datasets" not in (await projects.replace(ref, raw)).raw
    before = await projects.replace(ref, kept)
    assert before.raw["datasets"] == kept["datasets"]
    with pytest.raises(Conflict, match="papers"):
        await projects.replace(ref, raw)
    assert await projects.get(ref) == before


async def test_of_concurrent_creations_one_wins_and_clears_nothing_of_it(projects: Projects, log: list[str]) -> None:
    results = await asyncio.gather(*(projects.create(REF, "rag") for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(result, AlreadyExists) for result in results) == 9
    # What a losing creation cleared could be what the winner's caller has just put in.
    assert log == ["vectors of org/bot, folder gone", "sessions of org/bot, folder gone"]


async def test_of_concurrent_replacements_one_is_whole(projects: Projects) -> None:
    await projects.create(REF)
    raws = [
        {"version": "v1", "runtime": {"model": f"m{number}"}, "prompts": [{"content": f"{number}" * 1000}] * number}
        for number in range(1, 9)
    ]
    await asyncio.gather(*(projects.replace(REF, raw) for raw in raws))
    left = (await projects.get(REF)).raw
    assert left in [{**raw, "name": "bot", "namespace": "org"} for raw in raws]
