"""Examples, the one on board first, imported into the real parts."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.example_catalogue import ExampleCatalogue
from llamastead_server.adapters.project_templates import ProjectTemplates
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, PayloadTooLarge
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.projects.examples import Examples, Imported
from llamastead_server.domain.projects.projects import Projects
from llamastead_server.services.examples import example_message, human_size
from tests.dataset_stack import MODEL, Stack, stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
ON_BOARD = Path(__file__).parents[3] / "examples"
REF = ProjectRef("default", "quickstart")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder() -> AsyncIterator[WorkerEmbedder]:
    async with WorkerEmbedder(MODEL) as embedder:
        yield embedder


@pytest_asyncio.fixture(loop_scope="module")
async def parts(tmp_path: Path, embedder: WorkerEmbedder) -> AsyncIterator[Stack]:
    async with stack(tmp_path / "data", embedder) as parts:
        await parts.tasks.start()
        yield parts


def examples(parts: Stack, folder: Path = ON_BOARD) -> Examples:
    projects = Projects(
        parts.projects,
        ProjectTemplates(folder),
        lambda: "tiny",
        [parts.tasks, parts.datasets],
        parts.datasets.filled,
    )
    return Examples(ExampleCatalogue(folder), projects, parts.datasets, parts.tasks, default_model=lambda: "tiny")


async def test_the_example_on_board_is_listed_as_documented(parts: Stack) -> None:
    (example,) = [entry for entry in await examples(parts).list_examples() if entry.id == "quickstart_rag"]
    message = example_message(example)
    assert (message.id, message.slug, message.dataset_count) == ("quickstart_rag", "quickstart", 1)
    assert (message.primaryModel, list(message.tags)) == ("tiny", ["rag", "quickstart"])
    assert message.data_size_bytes > 1000
    assert message.data_size_human.endswith("KB")
    assert message.updated_at.startswith("20")


async def test_an_imported_example_answers_the_questions_of_the_readme(parts: Stack) -> None:
    imported = await examples(parts).import_project("quickstart_rag", REF, process=True)
    assert (imported.project, imported.datasets, len(imported.task_ids)) == (REF, ["handbook"], 1)
    async for state in parts.tasks.watch(REF, imported.task_ids[0]):
        last = state
    assert last.result is not None
    assert (last.result["processed_files"], last.result["failed_files"]) == (5, 0)
    config = await parts.projects.config(REF)
    assert (config.name, config.namespace, config.runtime.models[0].model) == ("quickstart", "default", "tiny")
    asked = {
        "When does the barn gate close?": "The barn gate closes at 21:00.",
        "What is the name of the oldest llama?": "The oldest llama is called Biscuit.",
        "Where is the first aid box?": "The first aid box is in the farm office",
        "Who makes the cheese?": "The cheese maker is Yusuf Karim.",
        "How fast may one drive on the farm?": "The speed limit on the farm is ten kilometres an hour.",
    }
    for question, answer in asked.items():
        assert any(answer in text for text in (await parts.found(question, "main_db", REF))[:3]), question


async def test_an_existing_project_is_not_touched(parts: Stack) -> None:
    await parts.make_project(REF)
    with pytest.raises(AlreadyExists):
        await examples(parts).import_project("quickstart_rag", REF, process=True)
    assert [dataset.config.name for dataset in await parts.datasets.list_datasets(REF)] == ["papers"]


def oversized(folder: Path) -> Path:
    """The examples, one of whose files is larger than `cramped` stores."""
    shutil.copytree(ON_BOARD, folder)
    (folder / "quickstart_rag" / "files" / "zoo.txt").write_text("too much " * 1000)
    return folder


@pytest_asyncio.fixture(loop_scope="module")
async def cramped(tmp_path: Path, embedder: WorkerEmbedder) -> AsyncIterator[Stack]:
    async with stack(tmp_path / "data", embedder, max_bytes=4000) as parts:
        await parts.tasks.start()
        yield parts


async def test_an_import_that_fails_half_way_leaves_nothing(cramped: Stack, tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLarge):
        await examples(cramped, oversized(tmp_path / "own")).import_project("quickstart_rag", REF, process=True)
    with pytest.raises(NotFound):
        await cramped.projects.get(REF)
    assert await cramped.left(REF) == (0, 0, 0)


async def import_data(parts: Stack, folder: Path = ON_BOARD, **options: bool) -> Imported:
    settings = {"include_strategies": True, "process": False, **options}
    return await examples(parts, folder).import_data("quickstart_rag", REF, **settings)


async def plain_project(parts: Stack, **fields: object) -> None:
    raw = {"name": REF.name, "namespace": REF.namespace, "runtime": {"model": "tiny"}, **fields}
    await parts.projects.create(REF, ProjectConfig.parse(raw))


async def test_data_is_added_to_a_project_and_answers(parts: Stack) -> None:
    await parts.make_project(REF)
    await parts.add("own.txt", "The own file stays.", ref=REF)
    imported = await import_data(parts, process=True)
    assert (imported.project, imported.datasets, len(imported.task_ids)) == (REF, ["handbook"], 1)
    async for state in parts.tasks.watch(REF, imported.task_ids[0]):
        last = state
    assert last.result is not None
    assert (last.result["processed_files"], last.result["failed_files"]) == (5, 0)
    assert "Yusuf Karim" in (await parts.found("cheese maker", "main_db", REF))[0]
    config = await parts.projects.config(REF)
    assert [dataset.name for dataset in config.datasets] == ["papers", "handbook"]
    assert [database.name for database in config.rag.databases] == ["main_db", "other_db"]


async def test_data_can_be_added_to_a_project_without_databases(parts: Stack) -> None:
    await plain_project(parts)
    await import_data(parts)
    config = await parts.projects.config(REF)
    assert [database.name for database in config.rag.databases] == ["main_db"]
    assert (await parts.datasets.get(REF, "handbook")).config.data_processing_strategy == "handbook_processor"


async def test_importing_again_adds_only_what_is_missing(parts: Stack) -> None:
    await plain_project(parts)
    await import_data(parts)
    before = (await parts.projects.get(REF)).raw, await parts.left(REF)
    await import_data(parts)
    assert ((await parts.projects.get(REF)).raw, await parts.left(REF)) == before
    (gone, *_) = (await parts.datasets.get(REF, "handbook")).files
    await parts.datasets.remove_file(REF, "handbook", gone.hash, from_disk=True)
    await import_data(parts)
    assert ((await parts.projects.get(REF)).raw, await parts.left(REF)) == before


OTHER_KIND = {"name": "main_db", "type": "ChromaStore"}
DATABASE = {"name": "main_db", "retrieval_strategies": [{"name": "own", "type": "keyword"}]}
STRATEGY = {"name": "handbook_processor", "parsers": [{"type": "auto"}]}


@pytest.mark.parametrize(
    ("rag", "datasets", "named"),
    [
        ({"databases": [OTHER_KIND]}, [], "database 'main_db'"),
        ({"data_processing_strategies": [STRATEGY]}, [], "strategy 'handbook_processor'"),
        ({"databases": [{"name": "mine"}]}, [{"name": "Handbook", "database": "mine"}], "dataset 'Handbook'"),
    ],
    ids=["database", "strategy", "dataset"],
)
async def test_what_differs_under_the_same_name_is_a_conflict_and_nothing_changes(
    parts: Stack, rag: object, datasets: object, named: str
) -> None:
    await plain_project(parts, rag=rag, datasets=datasets)
    before = await parts.projects.get(REF)
    with pytest.raises(Conflict, match=named):
        await import_data(parts)
    assert await parts.projects.get(REF) == before
    assert await parts.left(REF) == (0, 0, 0)


async def test_without_its_strategies_data_uses_the_projects_own(parts: Stack) -> None:
    await plain_project(parts)
    with pytest.raises(InvalidRequest, match="no database 'main_db'"):
        await import_data(parts, include_strategies=False)
    rag = {"databases": [DATABASE], "data_processing_strategies": [STRATEGY]}
    await parts.projects.replace(REF, ProjectConfig.parse({**(await parts.projects.get(REF)).raw, "rag": rag}))
    await import_data(parts, include_strategies=False)
    assert (await parts.projects.get(REF)).raw["rag"] == rag


async def test_data_that_fails_half_way_leaves_the_project_as_it_was(cramped: Stack, tmp_path: Path) -> None:
    folder = oversized(tmp_path / "own")
    await plain_project(cramped)
    before = (await cramped.projects.get(REF)).raw
    with pytest.raises(PayloadTooLarge):
        await import_data(cramped, folder)
    after = (await cramped.projects.get(REF)).raw
    assert (after.get("datasets"), after.get("rag")) == ([], {"databases": [], "data_processing_strategies": []})
    assert {key: after[key] for key in before} == before
    assert await cramped.left(REF) == (0, 0, 0)


async def test_files_added_to_a_dataset_that_was_there_are_taken_back(cramped: Stack, tmp_path: Path) -> None:
    await plain_project(cramped)
    await import_data(cramped)
    kept, *taken = (await cramped.datasets.get(REF, "handbook")).files
    for file in taken:
        await cramped.datasets.remove_file(REF, "handbook", file.hash, from_disk=True)
    with pytest.raises(PayloadTooLarge):
        await import_data(cramped, oversized(tmp_path / "own"))
    assert [file.hash for file in (await cramped.datasets.get(REF, "handbook")).files] == [kept.hash]


async def test_data_for_a_project_that_is_not_there_or_broken_is_refused(parts: Stack) -> None:
    with pytest.raises(NotFound):
        await import_data(parts)
    await plain_project(parts)
    (parts.folder / "projects" / REF.namespace / REF.name / "llamafarm.yaml").write_text("runtime: [")
    with pytest.raises(Conflict, match="can't be used"):
        await import_data(parts)


async def test_one_dataset_can_be_added_under_another_name(parts: Stack) -> None:
    await plain_project(parts)

    async def add(dataset: str, target: str | None) -> tuple[Imported, int]:
        return await examples(parts).import_dataset(
            "quickstart_rag", dataset, REF, target=target, include_strategies=True, process=False
        )

    imported, files = await add("handbook", "rules")
    assert (imported.datasets, imported.task_ids, files) == (["rules"], [], 5)
    await add("handbook", None)
    assert [dataset.config.name for dataset in await parts.datasets.list_datasets(REF)] == ["rules", "handbook"]
    with pytest.raises(NotFound, match="handbook"):
        await add("absent", None)
    with pytest.raises(InvalidRequest):
        await add("handbook", "../up")


async def test_an_unknown_or_hostile_id_is_not_found(parts: Stack) -> None:
    for name in ("absent", "../quickstart_rag", "/etc", ""):
        with pytest.raises(NotFound, match="quickstart_rag"):
            await examples(parts).import_project(name, REF, process=False)


async def test_a_broken_or_escaping_example_is_left_out(parts: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(ON_BOARD, folder)
    for name, manifest in {
        "broken": "id: [",
        "nameless": "title: x",
        "escaping": "id: escaping\nconfig: {yaml_path: ../../../etc/passwd}",
        "greedy": 'id: greedy\ndatasets: [{name: x, ingest: ["../quickstart_rag/files/*"]}]',
        "lost": "id: lost\ndatasets: [{name: x, database: absent}]",
    }.items():
        (folder / name).mkdir()
        (folder / name / "manifest.yaml").write_text(manifest)
        shutil.copy(folder / "quickstart_rag" / "llamafarm.yaml", folder / name)
    known = [example.id for example in await examples(parts).list_examples()]
    assert [example.id for example in await examples(parts, folder).list_examples()] == known


async def test_sizes_for_people() -> None:
    sizes = {0: "0.0B", 1023: "1023.0B", 4096: "4.0KB", 2 << 20: "2.0MB", 3 << 30: "3.0GB"}
    assert {size: human_size(size) for size in sizes} == sizes


async def test_a_project_keeps_its_own_ways_to_search_a_database_of_the_same_name(parts: Stack) -> None:
    await plain_project(parts, rag={"databases": [DATABASE]})
    await import_data(parts)
    assert (await parts.projects.get(REF)).raw["rag"]["databases"] == [DATABASE]
