"""Datasets and ingestion from end to end: real parser, real embedder, real Milvus Lite, real kills."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa

from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.ingestion import PROCESS_DATASET
from llamastead_server.domain.datasets.previews import PreviewRequest
from llamastead_server.domain.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    ValidationFailed,
)
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Collection, Embedder
from llamastead_server.domain.retrieval.retriever import Counts
from tests.dataset_stack import DATASET, MODEL, REF, Stack, pieces_of, stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
REPOSITORY = Path(__file__).parents[3]
GATE = "# Gate\n\nThe barn gate closes at 21:00."
GOATS = "The goats are milked at six and at half past five."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder() -> AsyncIterator[WorkerEmbedder]:
    async with WorkerEmbedder(MODEL) as embedder:
        yield embedder


@pytest_asyncio.fixture(loop_scope="module")
async def parts(tmp_path: Path, embedder: WorkerEmbedder) -> AsyncIterator[Stack]:
    async with stack(tmp_path, embedder) as parts:
        await parts.make_project()
        yield parts


class Gated:
    """The real embedder behind a gate, for tests that need something to happen in the middle."""

    def __init__(self, embedder: Embedder, *, fail: Exception | None = None) -> None:
        self._embedder = embedder
        self._fail = fail
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    @property
    def model(self) -> str:
        return self._embedder.model

    async def dimension(self) -> int:
        return await self._embedder.dimension()

    async def embed_query(self, text: str) -> Sequence[float]:
        return await self._embedder.embed_query(text)

    async def embed_passages(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        self.reached.set()
        await self.open.wait()
        if self._fail:
            raise self._fail
        return await self._embedder.embed_passages(texts)

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Sequence[float]:
        return await self._embedder.rerank(model, query, documents)


async def test_a_dataset_is_created_listed_and_unique(parts: Stack) -> None:
    created = await parts.datasets.create(REF, "more", database="other_db", auto_process=True)
    assert (created.config.database, created.auto_process) == ("other_db", True)
    assert [dataset.config.name for dataset in await parts.datasets.list_datasets(REF)] == [DATASET, "more"]
    for taken in ("more", "MORE"):
        with pytest.raises(AlreadyExists):
            await parts.datasets.create(REF, taken)
    assert await parts.datasets.strategies(REF) == (
        ["universal_processor", "universal_rag"],
        ["main_db", "other_db"],
    )


@pytest.mark.parametrize("wrong", [{"database": "absent"}, {"strategy": "absent"}, {"name": "../x"}, {"name": "con"}])
async def test_a_dataset_of_unknown_parts_or_hostile_name_is_refused(parts: Stack, wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"absent|name"):
        await parts.datasets.create(REF, **{"name": "other", **wrong})  # type: ignore[arg-type]


async def test_processing_finds_every_file_and_a_second_run_skips_them(parts: Stack) -> None:
    await parts.add("gate.md", GATE)
    await parts.add("goats.txt", GOATS)
    report = await parts.ingestion.process(REF, DATASET)
    assert (report.strategy, report.database) == ("universal_processor", "main_db")
    assert [(file.filename, file.status, file.parser, file.chunks) for file in report.files] == [
        ("gate.md", "processed", "markdown", 1),
        ("goats.txt", "processed", "text", 1),
    ]
    assert (report.files[0].chunk_size, report.files[0].embedder) == (500, MODEL)
    assert "closes at 21:00" in (await parts.found("barn gate"))[0]
    assert await parts.chunks.counts(REF, ()) == {"main_db": Counts(documents=2, chunks=2)}
    again = await parts.ingestion.process(REF, DATASET)
    assert (again.count("processed"), again.count("skipped")) == (0, 2)
    assert await parts.left() == (2, 2, 2)


async def test_chunks_carry_what_retrieval_shows(parts: Stack) -> None:
    digest = await parts.add("gate.md", GATE)
    await parts.ingestion.process(REF, DATASET)
    hits = await parts.vectors.search_keyword(await collection(parts), "gate", 1, {})
    (chunk,) = (await parts.chunks.get_chunks(REF, [hits[0].chunk_id])).values()
    assert (chunk.filename, chunk.file_hash, chunk.dataset, chunk.ordinal) == ("gate.md", digest, DATASET, 0)
    assert chunk.metadata == {"document_type": "md", "title": "Gate"}
    assert await parts.chunks.get_chunks(ProjectRef("my-org", "other"), [chunk.id]) == {}


async def collection(parts: Stack) -> Collection:
    return Collection(REF, "main_db", await parts.embedder.dimension())


async def test_a_bad_file_fails_alone_and_says_why(parts: Stack) -> None:
    await parts.add("gate.md", GATE)
    await parts.add("broken.pdf", b"%PDF-1.7 nonsense")
    await parts.add("empty.txt", b"")
    report = await parts.ingestion.process(REF, DATASET)
    assert [file.status for file in report.files] == ["processed", "failed", "failed"]
    assert "damaged" in (report.files[1].error or "")
    assert "empty" in (report.files[2].error or "")
    records = {record.filename: record.status for record in await parts.files.list_files(REF)}
    assert records == {"gate.md": "processed", "broken.pdf": "failed", "empty.txt": "failed"}


async def test_the_log_tells_how_a_run_went(parts: Stack, caplog: pytest.LogCaptureFixture) -> None:
    await parts.add("gate.md", GATE)
    await parts.add("empty.txt", b"")
    with caplog.at_level(logging.INFO, "llamastead.datasets"):
        await parts.ingestion.process(REF, DATASET)
    assert f"dataset {REF}/{DATASET}: 1 processed, 1 failed" in caplog.messages


async def test_the_same_content_is_kept_once_per_dataset_and_once_on_disk(parts: Stack) -> None:
    first = await parts.datasets.add_file(REF, DATASET, "a.txt", None, pieces_of(GOATS.encode()))
    second = await parts.datasets.add_file(REF, DATASET, "b.txt", None, pieces_of(GOATS.encode()))
    assert (first.skipped, second.skipped, second.record.filename) == (False, True, "a.txt")
    await parts.datasets.create(REF, "more")
    assert not (await parts.datasets.add_file(REF, "more", "c.txt", None, pieces_of(GOATS.encode()))).skipped
    assert await parts.left() == (0, 2, 1)


async def test_content_gone_from_the_disk_is_said_so_and_comes_back_with_an_upload(parts: Stack) -> None:
    digest = await parts.add("gate.md", GATE)
    parts.blobs.path(REF, digest).unlink()
    (file,) = (await parts.ingestion.process(REF, DATASET)).files
    assert file.error == "The content of 'gate.md' is gone from the server's disk. Upload the file again."
    with pytest.raises(Conflict, match="Upload the file again"):
        await parts.previews.preview(REF, PreviewRequest("main_db", dataset=DATASET, file_hash=digest))
    again = await parts.datasets.add_file(REF, DATASET, "gate.md", None, pieces_of(GATE.encode()))
    assert (again.record.hash, again.skipped) == (digest, False)
    assert (await parts.ingestion.process(REF, DATASET)).count("processed") == 1
    assert (await parts.datasets.add_file(REF, DATASET, "gate.md", None, pieces_of(GATE.encode()))).skipped


async def test_concurrent_uploads_of_one_content_end_as_one_file(parts: Stack) -> None:
    added = await asyncio.gather(
        *(parts.datasets.add_file(REF, DATASET, f"{n}.txt", None, pieces_of(b"same" * 50_000)) for n in range(8))
    )
    assert sorted(file.skipped for file in added) == [False, *[True] * 7]
    assert await parts.left() == (0, 1, 1)


HOSTILE = ["../../x.txt", "..\\x.txt", "/etc/passwd", "a\x00b.txt", "x" * 400, "\u202egpj.txt", "CON"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_file_name_never_leaves_the_project(parts: Stack, name: str) -> None:
    before = {path for path in parts.folder.rglob("*") if "lf_data" not in path.parts and "milvus" not in path.parts}
    record = (await parts.datasets.add_file(REF, DATASET, name, None, pieces_of(name.encode()))).record
    assert not set("/\\\x00\u202e") & set(record.filename)
    assert len(record.filename.encode()) <= 255
    after = {path for path in parts.folder.rglob("*") if "lf_data" not in path.parts and "milvus" not in path.parts}
    assert {path for path in after - before if "llamastead.db" not in path.name} == set()


async def test_an_upload_past_the_limit_is_refused_and_leaves_nothing(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    async with stack(tmp_path, embedder, max_bytes=1_000_000) as parts:
        await parts.make_project()
        with pytest.raises(PayloadTooLarge, match="1,000,000"):
            await parts.add("big.txt", b"x" * 1_000_001)
        assert await parts.left() == (0, 0, 0)
        await parts.add("fits.txt", b"x" * 1_000_000)
        assert await parts.left() == (0, 1, 1)


async def test_a_broken_off_upload_leaves_nothing(parts: Stack) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 3_000_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await parts.datasets.add_file(REF, DATASET, "a.txt", None, broken())
    assert await parts.left() == (0, 0, 0)


async def test_an_upload_to_nowhere_reads_no_content(parts: Stack) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the content was read")
        yield b""

    for ref, dataset in ((REF, "absent"), (ProjectRef("my-org", "absent"), DATASET)):
        with pytest.raises(NotFound):
            await parts.datasets.add_file(ref, dataset, "a.txt", None, unread())
    with pytest.raises(InvalidRequest):
        await parts.datasets.add_file(REF, "../x", "a.txt", None, unread())


async def test_removing_a_file_removes_its_vectors_its_record_and_on_demand_its_content(parts: Stack) -> None:
    gate, goats = await parts.add("gate.md", GATE), await parts.add("goats.txt", GOATS)
    await parts.ingestion.process(REF, DATASET)
    assert await parts.datasets.remove_file(REF, DATASET, gate, from_disk=False) == 1
    assert await parts.found("barn gate") == []
    assert await parts.left() == (1, 1, 2)
    assert await parts.datasets.remove_file(REF, DATASET, goats.upper(), from_disk=True) == 1
    assert await parts.left() == (0, 0, 1)
    with pytest.raises(NotFound):
        await parts.datasets.remove_file(REF, DATASET, gate, from_disk=True)
    await parts.add("gate.md", GATE)
    assert (await parts.ingestion.process(REF, DATASET)).count("processed") == 1


async def test_content_another_dataset_holds_stays_on_disk(parts: Stack) -> None:
    await parts.datasets.create(REF, "more")
    digest = await parts.add("gate.md", GATE)
    await parts.add("gate.md", GATE, "more")
    await parts.datasets.remove_file(REF, DATASET, digest, from_disk=True)
    assert await parts.left() == (0, 1, 1)
    assert (await parts.ingestion.process(REF, "more")).count("processed") == 1
    await parts.datasets.remove_file(REF, "more", digest, from_disk=True)
    assert await parts.left() == (0, 0, 0)


async def test_deleting_a_dataset_leaves_nothing_of_it(parts: Stack) -> None:
    await parts.datasets.create(REF, "more")
    await parts.add("gate.md", GATE)
    await parts.add("goats.txt", GOATS, "more")
    for dataset in (DATASET, "more"):
        await parts.ingestion.process(REF, dataset)
    deleted = await parts.datasets.delete(REF, DATASET)
    assert [record.filename for record in deleted.files] == ["gate.md"]
    assert await parts.found("barn gate") == []
    assert await parts.left() == (1, 1, 1)
    assert [dataset.config.name for dataset in await parts.datasets.list_datasets(REF)] == ["more"]
    with pytest.raises(NotFound):
        await parts.datasets.delete(REF, DATASET)


async def test_deleting_a_project_leaves_nothing_of_it(parts: Stack) -> None:
    await parts.add("gate.md", GATE)
    await parts.ingestion.process(REF, DATASET)
    await parts.datasets.delete_project(REF)
    await parts.projects.delete(REF)
    assert await parts.left() == (0, 0, 0)
    assert await parts.chunks.databases(REF) == []


async def test_changed_settings_process_again_and_leave_no_old_chunks(parts: Stack) -> None:
    await parts.add("long.txt", " ".join(f"Sentence number {n} is here." for n in range(40)))
    before = (await parts.ingestion.process(REF, DATASET)).files[0].chunks
    await change_strategy(parts, {"chunk_size": 100, "chunk_overlap": 0})
    after = (await parts.ingestion.process(REF, DATASET)).files[0]
    assert after.status == "processed"
    assert (after.chunks or 0) > 2 * (before or 0)
    await change_strategy(parts, {"chunk_size": 1000})
    last = (await parts.ingestion.process(REF, DATASET)).files[0]
    assert (await parts.left())[0] == last.chunks
    assert "an orphan" not in await parts.found("sentence")


async def change_strategy(parts: Stack, settings: dict[str, object], **dataset: object) -> None:
    def change(config: ProjectConfig) -> ProjectConfig:
        raw = config.plain()
        raw["rag"]["data_processing_strategies"][0]["parsers"][0]["config"] = settings
        raw["datasets"][0].update(dataset)
        return ProjectConfig.parse(raw)

    await parts.projects.update(REF, change)


async def test_a_dataset_moved_to_another_database_leaves_the_old_one(parts: Stack) -> None:
    await parts.add("gate.md", GATE)
    await parts.ingestion.process(REF, DATASET)
    await change_strategy(parts, {}, database="other_db")
    await parts.ingestion.process(REF, DATASET)
    assert await parts.vectors.count(REF, "main_db") == 0
    assert len(await parts.found("barn gate", "other_db")) == 1


IMPOSSIBLE = [{"chunk_size": 10}, {"chunk_size": "many"}, {"chunk_size": 100, "chunk_overlap": 90}, {"chunk_sise": 9}]


@pytest.mark.parametrize("settings", IMPOSSIBLE)
async def test_impossible_chunk_settings_are_refused_when_they_are_written(
    parts: Stack, settings: dict[str, object]
) -> None:
    (field,) = list(settings)[-1:]
    path = f"rag.data_processing_strategies.0.parsers.0.config.{field}"
    with pytest.raises(ValidationFailed) as refused:
        await change_strategy(parts, settings)
    assert list(refused.value.details) == [path]
    assert path in refused.value.message


async def test_a_file_of_its_own_settings_is_read_by_them_until_they_are_taken_back(parts: Stack) -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(40))
    overrides = {"chunk_size": 100, "chunk_overlap": 0}
    added = await parts.datasets.add_file(REF, DATASET, "long.txt", None, pieces_of(text.encode()), lambda: overrides)
    await parts.add("other.txt", text + " ")
    small, usual = (await parts.ingestion.process(REF, DATASET)).files
    assert (small.chunk_size, usual.chunk_size) == (100, 500)
    assert (small.chunks or 0) > 2 * (usual.chunks or 0)
    again = await parts.ingestion.process(REF, DATASET)
    assert again.count("skipped") == 2
    await parts.actions.override_parser(REF, DATASET, added.record.hash, {})
    back, untouched = (await parts.ingestion.process(REF, DATASET)).files
    assert (back.status, back.chunks, untouched.status) == ("processed", usual.chunks, "skipped")


async def test_settings_the_parser_does_not_have_are_refused_with_the_file(parts: Stack) -> None:
    refused = {
        "chunk_size": ({"chunk_size": "many"}, "should be a valid integer"),
        "chunk_overlap": ({"chunk_size": 60, "chunk_overlap": 50}, "use 0 to half of chunk_size"),
        "delimiter": ({"delimiter": ";"}, ""),
    }
    for field, (overrides, reason) in refused.items():
        with pytest.raises(ValidationFailed, match=f"refuses these: parser_overrides.{field}: {reason}"):
            await parts.datasets.add_file(
                REF,
                DATASET,
                "a.txt",
                None,
                pieces_of(b"text"),
                lambda overrides=overrides: overrides,  # type: ignore[misc]
            )
    assert await parts.left() == (0, 0, 0)


async def test_deleting_a_dataset_takes_all_but_what_others_hold(
    parts: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    await parts.datasets.create(REF, "more", database="other_db")
    await parts.add("gate.md", GATE)
    await parts.add("goats.txt", GOATS)
    await parts.add("gate.md", GATE, "more")
    for dataset in (DATASET, "more"):
        await parts.ingestion.process(REF, dataset)
    with caplog.at_level(logging.INFO, "llamastead.datasets"):
        deleted = await parts.datasets.delete(REF, DATASET)
    assert "my-org/shop/papers: 2 files and 2 chunks are deleted" in caplog.text
    assert {record.filename for record in deleted.files} == {"gate.md", "goats.txt"}
    assert await parts.left() == (1, 1, 1)
    assert len(await parts.found("barn gate", "other_db")) == 1
    await parts.datasets.delete(REF, "more")
    assert await parts.left() == (0, 0, 0)


async def test_lists_and_deletions_ask_the_database_as_often_for_many_files_as_for_few(
    tmp_path: Path, embedder: WorkerEmbedder
) -> None:
    counts = []
    async with stack(tmp_path, embedder) as parts:
        await parts.make_project()
        for number in (2, 30):
            await parts.datasets.create(REF, f"of-{number}")
            for file in range(number):
                await parts.add(f"{file}.txt", f"{number} {file}", f"of-{number}")
            with counted_statements() as statements:
                await parts.datasets.list_datasets(REF)
                await parts.databases.list_databases(REF)
                await parts.actions.override_parser(REF, f"of-{number}", None, {"chunk_size": 200})
                await parts.datasets.delete(REF, f"of-{number}")
            counts.append(len(statements))
    assert counts[0] == counts[1]


@contextlib.contextmanager
def counted_statements() -> Iterator[list[str]]:
    """The SQL statements that run meanwhile, on any connection."""
    statements: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


@pytest.mark.parametrize("from_disk", [False, True])
async def test_a_file_two_datasets_hold_survives_its_removal_from_one(parts: Stack, from_disk: bool) -> None:
    await parts.datasets.create(REF, "more")
    digest = await parts.add("gate.md", GATE)
    await parts.add("gate.md", GATE, "more")
    for dataset in (DATASET, "more"):
        await parts.ingestion.process(REF, dataset)
    assert await parts.datasets.remove_file(REF, DATASET, digest, from_disk=from_disk) == 1
    assert await parts.left() == (1, 1, 1)
    assert len(await parts.found("barn gate")) == 1
    assert [record.status for record in (await parts.datasets.get(REF, "more")).files] == ["processed"]


async def test_chunks_are_taken_from_one_file_or_from_all_and_files_stay(parts: Stack) -> None:
    gate = await parts.add("gate.md", GATE)
    await parts.add("goats.txt", GOATS)
    await parts.ingestion.process(REF, DATASET)
    cleared = await parts.actions.clear_chunks(REF, DATASET, gate)
    assert (cleared.chunks, cleared.files, cleared.failed) == (1, 1, 0)
    assert await parts.found("barn gate") == []
    assert await parts.left() == (1, 2, 2)
    cleared = await parts.actions.clear_chunks(REF, DATASET)
    assert (cleared.chunks, cleared.files) == (1, 2)
    assert {record.status for record in await parts.files.list_files(REF)} == {"uploaded"}
    report = await parts.ingestion.process(REF, DATASET, gate)
    assert [(file.filename, file.status) for file in report.files] == [("gate.md", "processed")]


async def test_a_run_in_which_every_file_fails_is_a_failure_that_says_why(parts: Stack) -> None:
    await parts.add("broken.pdf", b"%PDF-1.7 nonsense")
    await parts.add("empty.txt", b"")
    await parts.tasks.start()
    task = await parts.tasks.submit(REF, PROCESS_DATASET, {"dataset": DATASET})
    async for state in parts.tasks.watch(REF, task.id):
        last = state
    assert (last.state, last.attempt) == ("FAILURE", 1)
    assert "None of the 2 files" in (last.error or "")
    assert last.result is not None
    assert [(ok, file["filename"]) for ok, file in last.result["details"]] == [
        (False, "broken.pdf"),
        (False, "empty.txt"),
    ]


async def test_a_cancelled_task_stops_and_its_file_is_as_uploaded(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    gated = Gated(embedder)
    async with stack(tmp_path, gated) as parts:
        await parts.make_project()
        await parts.add("gate.md", GATE)
        await parts.add("goats.txt", GOATS)
        await parts.tasks.start()
        run = await parts.ingestion.plan(REF, DATASET)
        task = await parts.tasks.submit(REF, PROCESS_DATASET, {"dataset": DATASET}, run.meta())
        assert task.meta["message"] == "Processed 0 of 2 files"
        await gated.reached.wait()
        while not (await parts.tasks.get(REF, task.id)).files("processing"):
            await asyncio.sleep(0.05)
        cancelled = await parts.tasks.cancel(REF, task.id)
        assert (cancelled.done, cancelled.stopped, cancelled.not_reverted) == (True, True, 0)
        assert (await parts.tasks.get(REF, task.id)).meta["message"] == "Processed 0 of 2 files"
        assert cancelled.in_work == cancelled.reverted > 0
        assert cancelled.in_work + cancelled.waiting == 2
        assert {record.status for record in await parts.files.list_files(REF)} == {"uploaded"}
        assert (await parts.left())[0] == 0
        gated.open.set()
        assert (await parts.ingestion.process(REF, DATASET)).count("processed") == 2


async def test_what_extractors_find_is_searched_by_and_shown_with_the_file(parts: Stack) -> None:
    def change(config: ProjectConfig) -> ProjectConfig:
        raw = config.plain()
        raw["rag"]["data_processing_strategies"][0]["extractors"] = ["ContentStatisticsExtractor", "HeadingExtractor"]
        return ProjectConfig.parse(raw)

    await parts.projects.update(REF, change)
    digest = await parts.add("gate.md", GATE)
    report = await parts.ingestion.process(REF, DATASET)
    assert report.files[0].extractors == ("text", "metadata", "ContentStatisticsExtractor", "HeadingExtractor")
    assert report.files[0].metadata["headings"] == ["Gate"]
    record = await parts.files.get(REF, DATASET, digest)
    assert record is not None
    assert record.facts == report.files[0].metadata
    words = int(record.facts["word_count"])
    for wanted, count in ((words, 1), (words + 1, 0)):
        found = await parts.vectors.search_keyword(await collection(parts), "gate", 5, {"word_count": wanted})
        assert len(found) == count


async def test_what_a_mail_carries_is_found_filtered_by_and_named_with_the_file(parts: Stack) -> None:
    mail = EmailMessage()
    mail["Subject"] = "Barn"
    mail.set_content("See the note.")
    inner = EmailMessage()
    inner["Subject"] = "Older mail"
    inner.set_content("Sent last year.")
    inner.add_attachment(GATE.encode(), maintype="text", subtype="markdown", filename="gate.md")
    mail.add_attachment(inner)
    mail.add_attachment(b"\0\1\2" * 100, maintype="application", subtype="octet-stream", filename="blob.bin")
    digest = await parts.add("barn.eml", mail.as_bytes())
    assert (await parts.ingestion.process(REF, DATASET)).count("processed") == 1
    name = "Older mail.eml/gate.md"
    for wanted, count in ((name, 1), ("gate.md", 0)):
        found = await parts.vectors.search_keyword(await collection(parts), "barn gate", 5, {"attachment": wanted})
        assert len(found) == count
    (chunk,) = (await parts.chunks.get_chunks(REF, [found.chunk_id for found in await parts.vectors.search_keyword(
        await collection(parts), "gate closes", 1, {})])).values()  # fmt: skip
    assert (chunk.filename, chunk.metadata["attachment"], chunk.metadata["title"]) == ("barn.eml", name, "Gate")
    record = await parts.files.get(REF, DATASET, digest)
    assert record is not None
    assert [(entry["name"], entry.get("parser")) for entry in record.facts["attachments"]] == [
        ("Older mail.eml", "eml"), (name, "markdown"), ("blob.bin", None),
    ]  # fmt: skip


async def test_another_embedding_model_is_a_conflict_before_any_work(parts: Stack) -> None:
    await parts.add("gate.md", GATE)
    await parts.chunks.remember_embedding(REF, "main_db", "other-model", 768)
    with pytest.raises(Conflict, match=r"other-model.*768.*all-MiniLM"):
        await parts.ingestion.process(REF, DATASET)
    with pytest.raises(Conflict):
        await parts.ingestion.plan(REF, DATASET)


async def test_two_runs_of_one_dataset_never_interleave(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    gated = Gated(embedder)
    async with stack(tmp_path, gated) as parts:
        await parts.make_project()
        await parts.add("gate.md", GATE)
        await parts.tasks.start()
        task = await parts.tasks.submit(REF, PROCESS_DATASET, {"dataset": DATASET})
        await gated.reached.wait()
        with pytest.raises(Conflict, match="is being processed"):
            await parts.ingestion.process(REF, DATASET)
        queued = await parts.tasks.submit(REF, PROCESS_DATASET, {"dataset": DATASET})
        gated.open.set()
        ends = {}
        for entry in (task, queued):
            async for state in parts.tasks.watch(REF, entry.id):
                ends[entry.id] = state
        assert [(end.state, end.result["processed_files"], end.result["skipped_files"]) for end in ends.values()] == [  # type: ignore[index]
            ("SUCCESS", 1, 0),
            ("SUCCESS", 0, 1),
        ]
        assert ends[task.id].meta["files"][0]["state"] == "success"
        assert (ends[task.id].meta["current"], ends[task.id].meta["total"]) == (1, 1)


async def test_a_cancelled_run_leaves_its_file_as_uploaded(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    gated = Gated(embedder)
    async with stack(tmp_path, gated) as parts:
        await parts.make_project()
        digest = await parts.add("gate.md", GATE)
        run = asyncio.create_task(parts.ingestion.process(REF, DATASET))
        await gated.reached.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (await parts.files.get(REF, DATASET, digest)).status == "uploaded"  # type: ignore[union-attr]
        gated.open.set()
        assert (await parts.ingestion.process(REF, DATASET)).count("processed") == 1


async def test_a_dead_embedder_fails_the_run_and_not_the_file(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    gated = Gated(embedder, fail=Unavailable("The embedder went away."))
    gated.open.set()
    async with stack(tmp_path, gated) as parts:
        await parts.make_project()
        digest = await parts.add("gate.md", GATE)
        with pytest.raises(Unavailable):
            await parts.ingestion.process(REF, DATASET)
        record = await parts.files.get(REF, DATASET, digest)
        assert record is not None
        assert (record.status, record.error) == ("uploaded", None)


async def test_a_dataset_can_be_deleted_while_it_is_processed(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    gated = Gated(embedder)
    async with stack(tmp_path, gated) as parts:
        await parts.make_project()
        await parts.add("gate.md", GATE)
        run = asyncio.create_task(parts.ingestion.process(REF, DATASET))
        await gated.reached.wait()
        await asyncio.wait_for(parts.datasets.delete(REF, DATASET), 20)
        with pytest.raises(Conflict, match="deleted"):
            await run
        assert await parts.left() == (0, 0, 0)


async def test_a_file_removed_while_it_is_processed_is_gone(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    gated = Gated(embedder)
    async with stack(tmp_path, gated) as parts:
        await parts.make_project()
        digest = await parts.add("gate.md", GATE)
        run = asyncio.create_task(parts.ingestion.process(REF, DATASET))
        await gated.reached.wait()
        removal = asyncio.create_task(parts.datasets.remove_file(REF, DATASET, digest, from_disk=True))
        await asyncio.sleep(0.1)
        gated.open.set()
        await asyncio.gather(run, removal)
        assert await parts.left() == (0, 0, 0)


def papers(count: int) -> dict[str, str]:
    return {
        f"paper{number}.txt": " ".join(f"Paper {number} says in line {line} that llamas hum." for line in range(300))
        for number in range(count)
    }


@pytest.mark.parametrize("how", ["inline", "task"])
async def test_kill_9_in_the_middle_of_ingestion_is_put_right(
    tmp_path: Path, embedder: WorkerEmbedder, how: str
) -> None:
    async with stack(tmp_path, embedder) as parts:
        await parts.make_project()
        for name, text in papers(8).items():
            await parts.add(name, text)
    options = ["--task"] if how == "task" else []
    command = [sys.executable, "-m", "tests.dataset_stack", str(tmp_path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as server:
        assert server.stdout is not None
        task_id = server.stdout.readline().strip() if how == "task" else ""
        while line := server.stdout.readline():
            assert line.strip() != "done", "it ended before it could be killed"
            done, made = map(int, line.split())
            if done < 8 and made > 64:
                break
        server.send_signal(signal.SIGKILL)
    async with stack(tmp_path, embedder) as parts:
        records = await parts.files.list_files(REF)
        assert {record.status for record in records} <= {"uploaded", "processed"}
        finished = [record for record in records if record.status == "processed"]
        assert len(finished) < 8
        assert (await parts.left())[0] == sum(record.chunk_count for record in finished)
        if how == "task":
            await parts.tasks.start()
            async with asyncio.timeout(90):
                async for state in parts.tasks.watch(REF, task_id):
                    last = state
            assert last.result is not None
            counts = (last.result["processed_files"], last.result["skipped_files"], last.result["failed_files"])
        else:
            report = await parts.ingestion.process(REF, DATASET)
            counts = (report.count("processed"), report.count("skipped"), report.count("failed"))
        assert counts == (8 - len(finished), len(finished), 0)
        records = await parts.files.list_files(REF)
        assert await parts.left() == (sum(record.chunk_count for record in records), 8, 8)
        assert "an orphan" not in await parts.found("llamas hum")


@pytest.mark.parametrize("status", ["uploading", "processing", "deleting", "erasing"])
async def test_what_a_crash_left_half_done_is_put_right(tmp_path: Path, embedder: WorkerEmbedder, status: str) -> None:
    async with stack(tmp_path, embedder) as parts:
        await parts.make_project()
        digest = await parts.add("gate.md", GATE)
        await parts.add("goats.txt", GOATS)
        await parts.ingestion.process(REF, DATASET)
        record = await parts.files.get(REF, DATASET, digest)
        assert record is not None
        await parts.files.put(replace(record, status=status))  # type: ignore[arg-type]
        if status == "uploading":
            parts.blobs.path(REF, digest).unlink()
    async with stack(tmp_path, embedder) as parts:
        left = {"uploading": (2, 1, 1), "processing": (1, 2, 2), "deleting": (1, 1, 2), "erasing": (1, 1, 1)}
        assert await parts.left() == left[status]
        assert {record.status for record in await parts.files.list_files(REF)} <= {"uploaded", "processed"}


UPLOADING = """
import asyncio, sys
from pathlib import Path
from llamastead_server.adapters.blob_store import FileBlobStore
from llamastead_server.domain.names import ProjectRef

async def main():
    async with FileBlobStore(Path(sys.argv[1]), max_bytes=1 << 30).receive(ProjectRef("my-org", "shop")) as upload:
        await upload.write(b"x" * 5_000_000)
        print("written", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_an_upload_killed_with_its_server_leaves_no_rubbish(tmp_path: Path, embedder: WorkerEmbedder) -> None:
    async with stack(tmp_path, embedder) as parts:
        await parts.make_project()
        await parts.add("gate.md", GATE)
    command = [sys.executable, "-c", UPLOADING, str(tmp_path / "projects")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "written\n"
        server.send_signal(signal.SIGKILL)
    incoming = tmp_path / "projects" / "my-org" / "shop" / "lf_data" / "incoming"
    assert len(list(incoming.iterdir())) == 1
    async with stack(tmp_path, embedder) as parts:
        assert await parts.left() == (0, 1, 1)
        assert not incoming.exists()


async def test_large_content_is_stored_by_its_hash(parts: Stack) -> None:
    content = b"0123456789abcdef" * 500_000
    digest = await parts.add("large.bin", content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert parts.blobs.path(REF, digest).read_bytes() == content


async def test_the_event_loop_stays_free_while_a_large_file_is_processed(parts: Stack) -> None:
    """Liveness answers meanwhile: no step holds the loop for long (a hang bound, not a timing)."""
    text = "\n".join(f"Line {number} of the log says that all is well in the barn." for number in range(20_000))
    await parts.add("log.txt", text)
    longest = 0.0
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        nonlocal longest
        while True:
            before = loop.time()
            await asyncio.sleep(0.005)
            longest = max(longest, loop.time() - before)

    watching = asyncio.create_task(watch())
    run = asyncio.create_task(parts.ingestion.process(REF, DATASET))
    await asyncio.sleep(4)
    run.cancel()
    await asyncio.wait([run])
    watching.cancel()
    assert longest < 2
