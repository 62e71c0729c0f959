"""Databases, their embedding models, reindexing and previews, against the real parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.previews import PreviewRequest
from llamastead_server.domain.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    NotFound,
    ValidationFailed,
)
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.retrieval.health import RetrievalHealth
from llamastead_server.domain.retrieval.plan import RetrievalQuery
from llamastead_server.domain.retrieval.retriever import Retriever
from tests.adapters.test_embedder import make_bi_encoder
from tests.dataset_stack import MODEL, REF, Stack, stack
from tests.fake_clock import FakeClock

pytestmark = pytest.mark.asyncio(loop_scope="module")
SMALL = "tiny-embedder"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("databases")
    make_bi_encoder(folder / "models" / SMALL)
    async with WorkerEmbedder(MODEL, folder / "models") as embedder, stack(folder, embedder) as made:
        await made.make_project()
        yield made


@pytest.fixture
def retriever(parts: Stack) -> Retriever:
    return Retriever(parts.projects, parts.embedder, parts.vectors, parts.chunks)


class Unheard:
    """Progress that nobody follows."""

    async def report(
        self, current: int, total: int, message: str = "", files: Sequence[Mapping[str, Any]] = ()
    ) -> None: ...


async def project(parts: Stack, name: str, database: Mapping[str, Any], **rag: Any) -> ProjectRef:
    """A project with one database and an empty dataset `papers`."""
    ref = ProjectRef("my-org", name)
    raw = {"name": name, "namespace": "my-org", "runtime": {"model": "tiny"},
           "rag": {"databases": [{"name": "main_db", **database}], **rag}}  # fmt: skip
    await parts.projects.create(ref, ProjectConfig.parse(raw))
    await parts.datasets.create(ref, "papers")
    return ref


def embedding(model: str, **config: Any) -> dict[str, Any]:
    entry = {"name": "mine", "type": "SentenceTransformerEmbedder", "config": {"model_name": model, **config}}
    return {"embedding_strategies": [entry]}


async def test_a_database_is_made_changed_and_deleted_in_the_configuration(parts: Stack) -> None:
    made = await parts.databases.create(REF, {"name": "new_db", "type": "ChromaStore", "config": {"host": "x"}})
    assert (made.config.name, made.config.type, made.is_default, made.datasets) == ("new_db", "ChromaStore", False, [])
    assert made.embedding_model == MODEL
    assert "Milvus" in made.notes[0]
    assert "config.host" in made.notes[1]
    with pytest.raises(AlreadyExists, match="new_db"):
        await parts.databases.create(REF, {"name": "new_db"})
    strategy = {"name": "words", "type": "BM25Retriever", "config": {"top_k": 3}}
    changed = await parts.databases.update(REF, "new_db", {"retrieval_strategies": [strategy], "config": None})
    assert changed.config.retrieval_strategies[0].name == "words"
    assert (changed.config.type, changed.config.config) == ("ChromaStore", {})
    with pytest.raises(InvalidRequest, match="renamed"):
        await parts.databases.update(REF, "new_db", {"name": "other"})
    with pytest.raises(ValidationFailed, match="top_k"):
        await parts.databases.update(
            REF, "new_db", {"retrieval_strategies": [{**strategy, "config": {"top_k": 0}}]}
        )  # fmt: skip
    assert [view.config.name for view in (await parts.databases.list_databases(REF))[0]] == [
        "main_db", "other_db", "new_db",
    ]  # fmt: skip
    await parts.databases.delete(REF, "new_db")
    with pytest.raises(NotFound, match="new_db"):
        await parts.databases.get(REF, "new_db")
    assert "new_db" not in (parts.folder / "projects" / str(REF) / "llamafarm.yaml").read_text()


@pytest.mark.parametrize("raw", [{}, {"name": ""}, {"name": 3}, {"name": "x", "type": "Nonsense"},
                                 {"name": "x", "config": {"distance_function": "manhattan"}}], ids=str)  # fmt: skip
async def test_a_wrong_database_is_refused_and_nothing_is_written(parts: Stack, raw: dict[str, Any]) -> None:
    before = (parts.folder / "projects" / str(REF) / "llamafarm.yaml").read_text()
    with pytest.raises(ValidationFailed):
        await parts.databases.create(REF, raw)
    with pytest.raises(InvalidRequest):
        await parts.databases.create(REF, {"name": "../x"})
    assert (parts.folder / "projects" / str(REF) / "llamafarm.yaml").read_text() == before


async def test_databases_made_at_once_are_all_kept(parts: Stack) -> None:
    ref = await project(parts, "crowd", {})
    names = [f"db_{number}" for number in range(8)]
    await asyncio.gather(*(parts.databases.create(ref, {"name": name}) for name in names))
    assert {view.config.name for view in (await parts.databases.list_databases(ref))[0]} == {"main_db", *names}


async def test_a_database_with_datasets_stays_and_one_without_takes_its_vectors_along(
    parts: Stack, retriever: Retriever
) -> None:
    ref = await project(parts, "leaving", {}, default_database="main_db")
    await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    await parts.ingestion.process(ref, "papers")
    with pytest.raises(Conflict, match="papers"):
        await parts.databases.delete(ref, "main_db")
    assert await parts.vectors.count(ref, "main_db") == 1
    await parts.databases.create(ref, {"name": "next_db"})
    # The dataset moves on; what it left in the old database goes with that.
    moved = [{"name": "papers", "database": "next_db"}]
    await parts.projects.update(ref, lambda config: ProjectConfig.parse({**config.plain(), "datasets": moved}))
    _, chunks = await parts.databases.delete(ref, "main_db")
    assert chunks == 1
    assert await parts.vectors.count(ref, "main_db") == 0
    # Nothing says any more that the file was processed, so processing fills the new database.
    report = await parts.ingestion.process(ref, "papers")
    assert report.count("processed") == 1
    assert len((await retriever.query(ref, RetrievalQuery("barn"))).hits) == 1


async def test_documents_shared_by_two_datasets_are_one_document(parts: Stack) -> None:
    ref = await project(parts, "shared", {})
    await parts.datasets.create(ref, "copies")
    digest = await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    await parts.add("barn.txt", "The barn gate closes at eight.", "copies", ref)
    await parts.add("audit.txt", "The audit happens in March.", ref=ref)
    for dataset in ("papers", "copies"):
        await parts.ingestion.process(ref, dataset)
    found = await parts.databases.documents(ref, None, limit=50, offset=0)
    assert [(each.filename, each.chunk_count, list(each.datasets)) for each in found] == [
        ("audit.txt", 1, ["papers"]),
        ("barn.txt", 2, ["copies", "papers"]),
    ]
    assert [each.filename for each in await parts.databases.documents(ref, None, limit=1, offset=1)] == ["barn.txt"]
    stats = await parts.databases.stats(ref, None)
    assert (stats.vectors, stats.contents.chunks, stats.contents.documents) == (3, 3, 2)
    assert (stats.model, stats.dimension) == (MODEL, 384)
    health = (await RetrievalHealth(parts.projects, parts.embedder, parts.vectors, parts.chunks).check(ref)).databases[
        0
    ]
    assert (health.document_count, health.chunk_count) == (2, 3)
    # Removed from one, it is still in the other.
    await parts.datasets.remove_file(ref, "papers", digest, from_disk=True)
    assert [each.chunk_count for each in await parts.databases.documents(ref, None, limit=50, offset=0)] == [1, 1]
    await parts.datasets.delete(ref, "copies")
    assert [each.filename for each in await parts.databases.documents(ref, None, limit=50, offset=0)] == ["audit.txt"]
    assert await parts.vectors.count(ref, "main_db") == 1


async def test_a_document_is_dated_by_when_its_vectors_were_made_not_by_its_upload(
    parts: Stack, tmp_path: Path
) -> None:
    clock = FakeClock()

    async def times() -> tuple[list[float | None], float | None]:
        documents = await made.databases.documents(REF, None, limit=50, offset=0)
        newest = (await made.databases.stats(REF, None)).contents.newest
        return [each.ingested_at for each in documents], newest

    async with stack(tmp_path, parts.embedder, clock=clock) as made:
        await made.make_project()
        uploaded = clock.now
        digest = await made.add("barn.txt", "The barn gate closes at eight.")
        clock.now += 10
        await made.ingestion.process(REF, "papers")
        assert await times() == ([uploaded + 10], uploaded + 10)
        clock.now += 10
        await made.add("audit.txt", "The audit happens in March.")
        await made.ingestion.process(REF, "papers")
        # Skipped, as nothing about it changed, and so as old as it was.
        assert await times() == ([uploaded + 20, uploaded + 10], uploaded + 20)
        clock.now += 10
        await made.actions.override_parser(REF, "papers", digest, {"chunk_size": 200})
        await made.ingestion.process(REF, "papers")
        assert await times() == ([uploaded + 20, uploaded + 30], uploaded + 30)
        clock.now += 10
        await made.reindexing.run_task(REF, {"database": "main_db"}, Unheard())
        assert await times() == ([uploaded + 40] * 2, uploaded + 40)
        await made.actions.clear_chunks(REF, "papers", digest)
        assert await times() == ([uploaded + 40], uploaded + 40)
        record = await made.files.get(REF, "papers", digest)
        assert record is not None
        assert (record.uploaded_at, record.ingested_at) == (uploaded, None)
        await made.databases.clear(REF, None)
        assert await times() == ([], None)
        assert {each.ingested_at for each in await made.files.list_files(REF)} == {None}


async def test_a_dataset_taken_out_of_the_file_by_hand_is_hidden_until_it_is_in_it_again(
    parts: Stack, retriever: Retriever, caplog: pytest.LogCaptureFixture
) -> None:
    ref = await project(parts, "edited", {})
    path = parts.folder / "projects" / str(ref) / "llamafarm.yaml"
    await parts.datasets.create(ref, "secrets")
    await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    await parts.add("vault.txt", "The barn vault opens at nine.", "secrets", ref)
    for dataset in ("papers", "secrets"):
        await parts.ingestion.process(ref, dataset)
    whole = path.read_text()

    async def seen() -> tuple[list[str], list[str], tuple[int, int, int], tuple[int, int], list[str]]:
        """What searches find, what is listed, and what is counted."""
        found = set()
        for strategy in ("vector", "keyword", "hybrid"):
            for filters in ({}, {"dataset": ["papers", "secrets"]}, {"document_type": "txt"}):
                query = RetrievalQuery("barn", retrieval_strategy=strategy, metadata_filters=filters)
                found.add(tuple(sorted(hit.chunk.filename for hit in (await retriever.query(ref, query)).hits)))
        assert len(found) == 1
        documents = await parts.databases.documents(ref, None, limit=50, offset=0)
        stats = await parts.databases.stats(ref, None)
        report = await health.check(ref)
        database = report.databases[0]
        assert report.status == "healthy"
        return (
            list(found.pop()),
            [each.filename for each in documents],
            (stats.vectors, stats.contents.chunks, stats.contents.documents),
            (database.chunk_count, database.document_count),
            list(report.issues),
        )

    health = RetrievalHealth(parts.projects, parts.embedder, parts.vectors, parts.chunks)
    both = ["barn.txt", "vault.txt"]
    assert await seen() == (both, both, (2, 2, 2), (2, 2), [])
    entries = ProjectConfig.parse(yaml.safe_load(whole)).plain()["datasets"]
    path.write_text(yaml.safe_dump({**yaml.safe_load(whole), "datasets": entries[:1]}))
    with caplog.at_level(logging.WARNING):
        found, listed, stats, counts, issues = await seen()
    assert (found, listed, stats, counts) == (["barn.txt"], ["barn.txt"], (1, 1, 1), (1, 1))
    assert issues == [dataset.message for dataset in (await health.check(ref)).hidden]
    assert "'secrets'" in issues[0]
    assert "DELETE datasets/secrets" in issues[0]
    assert caplog.text.count("hidden from searches") == 1
    # A file that is broken hides nothing and deletes nothing: it is refused.
    path.write_text(whole + "]")
    with pytest.raises(Conflict):
        await retriever.query(ref, RetrievalQuery("barn"))
    with pytest.raises(Conflict):
        await parts.datasets.delete(ref, "secrets")
    # In the file again, all is there again.
    path.write_text(whole)
    assert await seen() == (both, both, (2, 2, 2), (2, 2), [])
    assert (await parts.ingestion.process(ref, "secrets")).count("skipped") == 1
    # Out of it, it can be deleted for good.
    edited = yaml.safe_dump({**yaml.safe_load(whole), "datasets": entries[:1]}) + "# by hand\n"
    path.write_text(edited)
    deleted = await parts.datasets.delete(ref, "secrets")
    assert [record.filename for record in deleted.files] == ["vault.txt"]
    assert path.read_text() == edited
    assert await parts.left(ref) == (1, 1, 1)
    with pytest.raises(NotFound):
        await parts.datasets.delete(ref, "secrets")
    path.write_text(whole)
    assert await seen() == (["barn.txt"], ["barn.txt"], (1, 1, 1), (1, 1), [])


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 1001}, {"offset": 2**32 - 1}], ids=str)
async def test_a_page_out_of_range_is_refused(parts: Stack, wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationFailed, match=next(iter(wrong))):
        await parts.databases.documents(REF, None, **{"limit": 50, "offset": 0, **wrong})


async def test_a_database_uses_the_model_it_names(parts: Stack, retriever: Retriever) -> None:
    ref = await project(parts, "small", embedding(f"sentence-transformers/{SMALL}", batch_size=8))
    view = await parts.databases.get(ref, None)
    assert view.embedding_model == SMALL
    assert any("config.batch_size" in note for note in view.notes)
    assert (await parts.databases.stats(ref, None)).dimension == 16
    await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    report = await parts.ingestion.process(ref, "papers")
    assert report.files[0].embedder == SMALL
    assert await parts.chunks.embedding_of(ref, "main_db") == (SMALL, 16)
    hits = (await retriever.query(ref, RetrievalQuery("barn gate", retrieval_strategy="vector"))).hits
    assert [hit.chunk.filename for hit in hits] == ["barn.txt"]
    health = await RetrievalHealth(parts.projects, parts.embedder, parts.vectors, parts.chunks).check(ref)
    assert (health.status, health.databases[0].embedding) == ("healthy", (SMALL, 16))


async def test_a_model_that_is_not_installed_is_replaced_only_aloud(parts: Stack) -> None:
    ref = await project(parts, "absent-model", embedding("nomic-embed-text:latest"))
    await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    await parts.ingestion.process(ref, "papers")
    view = await parts.databases.get(ref, None)
    assert view.embedding_model == MODEL
    assert any("nomic-embed-text" in note and MODEL in note for note in view.notes)
    health = await RetrievalHealth(parts.projects, parts.embedder, parts.vectors, parts.chunks).check(ref)
    assert health.status == "degraded"
    assert "nomic-embed-text" in health.issues[0]


async def test_a_model_of_another_length_that_is_not_installed_is_a_conflict(parts: Stack) -> None:
    ref = await project(parts, "longer", embedding("nomic-embed-text", dimension=768))
    await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    with pytest.raises(Conflict, match=r"nomic-embed-text.*768.*384"):
        await parts.ingestion.process(ref, "papers")
    view = await parts.databases.get(ref, None)
    assert view.embedding_model is None
    assert "nomic-embed-text" in view.notes[-1]
    fits = await project(parts, "as-long", embedding("nomic-embed-text", dimension=384))
    assert (await parts.databases.get(fits, None)).embedding_model == MODEL


async def test_a_reference_to_a_component_is_followed(parts: Stack, retriever: Retriever) -> None:
    components = {
        "embedding_strategies": {"shared": {"type": "HuggingFaceEmbedder", "config": {"model_name": SMALL}}},
        "retrieval_strategies": [{"name": "words", "type": "BM25Retriever", "config": {"top_k": 7}}],
    }
    ref = await project(
        parts, "referring", {"embedding_strategy": "shared", "retrieval_strategy": "words"}, components=components
    )
    assert (await parts.databases.get(ref, None)).embedding_model == SMALL
    assert (await retriever.query(ref, RetrievalQuery("x"))).strategy == "words"
    raw = (await parts.projects.get(ref)).raw["rag"]["databases"][0]
    assert raw == {"name": "main_db", "embedding_strategy": "shared", "retrieval_strategy": "words"}
    with pytest.raises(ValidationFailed, match=r"'absent' is not one of rag.components.retrieval_strategies: words"):
        await parts.databases.update(ref, "main_db", {"retrieval_strategy": "absent"})


async def test_reindexing_makes_the_vectors_with_the_model_that_is_now_named(
    parts: Stack, retriever: Retriever
) -> None:
    ref = await project(parts, "changing", {})
    for number in range(70):
        await parts.add(f"{number}.txt", f"Paragraph {number} about the barn.", ref=ref)
    await parts.ingestion.process(ref, "papers")
    await parts.databases.update(ref, "main_db", embedding(SMALL))
    with pytest.raises(Conflict, match=rf"{MODEL}.*{SMALL}"):
        await retriever.query(ref, RetrievalQuery("barn"))
    assert await parts.reindexing.plan(ref, None) == "main_db"
    reports: list[tuple[int, int]] = []

    class Progress:
        async def report(
            self, current: int, total: int, message: str = "", files: Sequence[Mapping[str, Any]] = ()
        ) -> None:
            reports.append((current, total))

    result = await parts.reindexing.run_task(ref, {"database": "main_db"}, Progress())
    assert result == {"database": "main_db", "chunks": 70, "embedding_model": SMALL}
    assert reports[-1] == (70, 70)
    assert await parts.vectors.count(ref, "main_db") == 70
    assert len((await retriever.query(ref, RetrievalQuery("barn", top_k=100))).hits) == 70
    # Run again, as after a crash, it comes to the same.
    await parts.reindexing.run_task(ref, {"database": "main_db"}, Progress())
    assert await parts.vectors.count(ref, "main_db") == 70


async def test_processing_again_restores_vectors_that_were_lost(parts: Stack, retriever: Retriever) -> None:
    ref = await project(parts, "restored", {})
    await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    await parts.add("audit.txt", "The audit happens in March.", ref=ref)
    await parts.ingestion.process(ref, "papers")
    before = (await retriever.query(ref, RetrievalQuery("barn gate"))).hits
    await parts.vectors.drop(ref, "main_db")
    assert (await retriever.query(ref, RetrievalQuery("barn gate"))).hits == []
    report = await parts.ingestion.process(ref, "papers")
    assert report.count("skipped") == 2
    after = (await retriever.query(ref, RetrievalQuery("barn gate"))).hits
    assert [hit.chunk for hit in after] == [hit.chunk for hit in before]
    assert [hit.score for hit in after] == pytest.approx([hit.score for hit in before], abs=1e-3)


async def test_a_cleared_database_is_empty_and_can_be_filled_again(parts: Stack, retriever: Retriever) -> None:
    ref = await project(parts, "cleared", {})
    await parts.add("barn.txt", "The barn gate closes at eight.", ref=ref)
    await parts.ingestion.process(ref, "papers")
    assert await parts.databases.clear(ref, None) == ("main_db", 1)
    assert (await retriever.query(ref, RetrievalQuery("barn gate"))).hits == []
    assert (await parts.databases.stats(ref, None)).contents.chunks == 0
    assert (await parts.ingestion.process(ref, "papers")).count("processed") == 1
    assert len((await retriever.query(ref, RetrievalQuery("barn gate"))).hits) == 1


async def test_a_preview_cuts_as_processing_would(parts: Stack) -> None:
    ref = await project(parts, "previewed", {})
    text = " ".join(f"Sentence number {number} is about the barn." for number in range(40))
    digest = await parts.add("long.txt", text, ref=ref)
    shown = await parts.previews.preview(ref, PreviewRequest("main_db", dataset="papers", file_hash=digest))
    report = await parts.ingestion.process(ref, "papers")
    assert len(shown.chunks) == report.files[0].chunks
    assert shown.text == text
    assert all(shown.text[chunk.start : chunk.end] == chunk.text for chunk in shown.chunks)
    sent = PreviewRequest("main_db", content=text.encode(), filename="../x.txt", chunk_size=100, chunk_overlap=0)
    small = await parts.previews.preview(ref, sent)
    assert (small.filename, small.size) == ("x.txt", len(text))
    assert all(len(chunk.text) <= 100 for chunk in small.chunks)
    whole = PreviewRequest("main_db", content=text.encode(), chunk_size=100, chunk_strategy="characters")
    first = (await parts.previews.preview(ref, whole)).chunks[0]
    assert first.text == text[:100]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, InvalidRequest),
        ({"dataset": "papers"}, InvalidRequest),
        ({"dataset": "papers", "file_hash": "0" * 64}, NotFound),
        ({"dataset": "absent", "file_hash": "0" * 64}, NotFound),
        ({"database": "absent", "content": b"x"}, NotFound),
        ({"content": b"x", "strategy": "absent"}, NotFound),
        ({"content": b"x", "chunk_size": 10}, ValidationFailed),
        ({"content": b"x", "chunk_size": 100, "chunk_overlap": 90}, ValidationFailed),
        ({"content": b"x", "chunk_strategy": "poems"}, ValidationFailed),
        ({"content": b"x", "dataset": "papers"}, InvalidRequest),
        ({"content": b"", "filename": "x.txt"}, InvalidRequest),
    ],
    ids=str,
)
async def test_what_can_t_be_previewed_is_refused(parts: Stack, fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await parts.previews.preview(REF, PreviewRequest(**{"database": "main_db", **fields}))


async def test_deleting_a_project_s_database_while_nothing_was_ever_written_is_no_error(parts: Stack) -> None:
    ref = await project(parts, "untouched", {})
    await parts.databases.create(ref, {"name": "empty_db"})
    assert (await parts.databases.delete(ref, "empty_db"))[1] == 0
