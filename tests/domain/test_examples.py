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
from llamastead_server.domain.errors import AlreadyExists, NotFound
from llamastead_server.domain.examples import Examples
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.projects import Projects
from llamastead_server.services.examples import example_message, human_size
from tests.dataset_stack import MODEL, Stack, stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
ON_BOARD = Path(__file__).parents[2] / "examples"
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
    (example,) = await examples(parts).list_examples()
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
        assert any(answer in text for text in (await parts.found(question, ref=REF))[:3]), question


async def test_an_existing_project_is_not_touched(parts: Stack) -> None:
    await parts.make_project(REF)
    with pytest.raises(AlreadyExists):
        await examples(parts).import_project("quickstart_rag", REF, process=True)
    assert [dataset.config.name for dataset in await parts.datasets.list_datasets(REF)] == ["papers"]


async def test_an_import_that_fails_half_way_leaves_nothing(parts: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    shutil.copytree(ON_BOARD, folder)
    manifest = folder / "quickstart_rag" / "manifest.yaml"
    second = '  - {name: second, database: absent, ingest: ["files/*"]}\nprocess_after'
    manifest.write_text(manifest.read_text().replace("process_after", second))
    with pytest.raises(Exception, match="absent"):
        await examples(parts, folder).import_project("quickstart_rag", REF, process=True)
    with pytest.raises(NotFound):
        await parts.projects.get(REF)
    assert await parts.left(REF) == (0, 0, 0)


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
    }.items():
        (folder / name).mkdir()
        (folder / name / "manifest.yaml").write_text(manifest)
        shutil.copy(folder / "quickstart_rag" / "llamafarm.yaml", folder / name)
    assert [example.id for example in await examples(parts, folder).list_examples()] == ["quickstart_rag"]


async def test_sizes_for_people() -> None:
    sizes = {0: "0.0B", 1023: "1023.0B", 4096: "4.0KB", 2 << 20: "2.0MB", 3 << 30: "3.0GB"}
    assert {size: human_size(size) for size in sizes} == sizes
