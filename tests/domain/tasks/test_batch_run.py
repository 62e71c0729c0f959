"""Batches over the real database and folder, with answers a test scripts."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llamastead_server.adapters.batch_folder import BatchFolder
from llamastead_server.adapters.batch_store import SqlBatchStore
from llamastead_server.adapters.database import Database
from llamastead_server.domain.access.rights import Principal, Scope
from llamastead_server.domain.errors import NotFound, Overloaded, PayloadTooLarge
from llamastead_server.domain.tasks.batch_records import Batch, Page
from llamastead_server.domain.tasks.batch_run import BATCHES, BatchRuns, LineAnswer
from llamastead_server.domain.tasks.batches import Batches
from tests.fake_clock import FakeClock

CHAT = "/v1/chat/completions"
ANYONE = Principal("address:127.0.0.1")


class Answers:
    """Answers every line with what the test says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.script: list[LineAnswer | Exception] = []
        self.running = self.peak = 0
        self.gate: asyncio.Event | None = None

    async def answer(self, endpoint: str, body: Mapping[str, Any]) -> LineAnswer:
        self.asked.append(body["name"])
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
            scripted = self.script.pop(0) if self.script else LineAnswer(200, {"ok": True})
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        finally:
            self.running -= 1


class Stack:
    def __init__(self, folder: Path, database: Database) -> None:
        self.clock = FakeClock()
        self.answers = Answers()
        self.room = True
        self.woken = 0
        self.store = SqlBatchStore(database)
        self.content = BatchFolder(folder, max_bytes=100_000)
        self.batches = Batches(self.store, self.content, self._wake, self.clock)
        self.runs = self.new_runs()
        self.folder = folder / "batches"

    def new_runs(self) -> BatchRuns:
        return BatchRuns(self.store, self.content, self.answers, lambda: self.room, self._wake, self.clock, poll=0.01)

    async def run(self) -> None:
        async with asyncio.timeout(30):
            await self.runs.run(BATCHES, {}, None)  # type: ignore[arg-type]

    async def begin(self, *names: str, caller: Principal = ANYONE) -> Batch:
        self.clock.now += 1
        lines = [{"custom_id": name, "method": "POST", "url": CHAT, "body": {"name": name}} for name in names]

        async def content() -> AsyncIterator[bytes]:
            for line in lines:
                yield json.dumps(line).encode() + b"\n"

        file = await self.batches.add_file(caller, "in.jsonl", content(), lambda: "batch")
        return await self.batches.create(caller, file.id, CHAT, "24h", {})

    async def now(self, batch: Batch) -> Batch:
        return await self.batches.get(ANYONE, batch.id)

    async def lines(self, file_id: str) -> list[dict[str, Any]]:
        data = b"".join([piece async for piece in self.batches.read_file(ANYONE, file_id)])
        return [json.loads(line) for line in data.splitlines()]

    async def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
async def stack(tmp_path: Path, database_url: str) -> AsyncIterator[Stack]:
    async with Database(database_url) as database:
        yield Stack(tmp_path, database)


async def test_one_line_is_answered_at_a_time_whatever_runs(stack: Stack) -> None:
    first, second = await stack.begin("a", "b"), await stack.begin("c", "d")
    await asyncio.gather(*(stack.run() for _ in range(4)))
    assert stack.answers.asked == ["a", "b", "c", "d"]
    assert stack.answers.peak == 1
    for batch in (first, second):
        assert (await stack.now(batch)).status == "completed"


async def test_a_line_waits_for_room(stack: Stack) -> None:
    batch = await stack.begin("a")
    stack.room = False
    running = asyncio.create_task(stack.run())
    await asyncio.sleep(0.1)
    assert stack.answers.asked == []
    stack.room = True
    await running
    assert (await stack.now(batch)).status == "completed"


async def test_a_batch_begun_while_another_run_ends_is_not_forgotten(stack: Stack) -> None:
    stack.answers.gate = asyncio.Event()
    await stack.begin("a")
    running = asyncio.create_task(stack.run())
    while not stack.answers.asked:
        await asyncio.sleep(0.01)
    late = await stack.begin("b")
    await stack.run()
    stack.answers.gate.set()
    await running
    assert (await stack.now(late)).status == "completed"


async def test_a_run_ends_with_its_slice_and_asks_for_another(stack: Stack) -> None:
    batch = await stack.begin("a", "b")
    woken = stack.woken
    answer = stack.answers.answer

    async def slow(endpoint: str, body: Mapping[str, Any]) -> LineAnswer:
        stack.clock.now += 31
        return await answer(endpoint, body)

    stack.answers.answer = slow  # type: ignore[method-assign]
    await stack.run()
    assert (stack.answers.asked, stack.woken) == (["a"], woken + 1)
    assert (await stack.now(batch)).completed == 1
    await stack.run()
    assert stack.answers.asked == ["a", "b"]
    assert (await stack.now(batch)).status == "completed"


async def test_a_run_that_is_cut_off_is_gone_on_with_by_the_next_server(stack: Stack) -> None:
    batch = await stack.begin("a", "b", "c")
    stack.answers.script = [LineAnswer(200, {})]
    running = asyncio.create_task(stack.run())
    while not (await stack.now(batch)).completed:
        await asyncio.sleep(0)
    stack.answers.gate = asyncio.Event()
    running.cancel()
    await asyncio.wait([running])
    done = (await stack.now(batch)).completed
    stack.answers.gate.set()
    stack.runs = stack.new_runs()
    await stack.batches.resume()
    await stack.run()
    ended = await stack.now(batch)
    assert (ended.status, ended.completed) == ("completed", 3)
    assert done < 3
    assert [line["custom_id"] for line in await stack.lines(ended.output_file_id)] == ["a", "b", "c"]


async def test_an_overloaded_engine_is_asked_again_and_a_wrong_line_is_not(stack: Stack) -> None:
    batch = await stack.begin("a", "b")
    stack.answers.script = [LineAnswer(503, {}, 0.01), LineAnswer(200, {}), LineAnswer(422, {"error": {}})]
    await stack.run()
    assert stack.answers.asked == ["a", "a", "b"]
    ended = await stack.now(batch)
    assert (ended.completed, ended.failed) == (1, 1)
    assert [line["response"]["status_code"] for line in await stack.lines(ended.error_file_id)] == [422]


async def test_a_defect_fails_its_batch_and_the_others_go_on(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = await stack.begin("a"), await stack.begin("b")
    stack.answers.script = [ZeroDivisionError("a secret")]
    await stack.run()
    failed = await stack.now(broken)
    assert failed.status == "failed"
    assert "secret" not in str(failed.errors)
    assert (await stack.now(sound)).status == "completed"
    assert any(record.exc_info for record in caplog.records)


async def test_a_full_disk_ends_a_batch_with_the_answers_it_has(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = await stack.begin("a", "b", "c")
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if b'"custom_id":"b"' not in bytes(data):
            # What is left of a line that was begun.
            return write(descriptor, data) if bytes(data).startswith(b"{") else _no_room()
        return write(descriptor, data[:20])

    monkeypatch.setattr("llamastead_server.adapters.batch_folder.os.write", full)
    await stack.run()
    ended = await stack.now(batch)
    assert (ended.status, ended.total, ended.completed, ended.failed) == ("failed", 3, 1, 0)
    assert [line["custom_id"] for line in await stack.lines(ended.output_file_id)] == ["a"]


def _no_room() -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_batch_whose_time_is_over_ends_with_what_it_has(stack: Stack) -> None:
    batch = await stack.begin("a", "b")
    answer = stack.answers.answer

    async def slow(endpoint: str, body: Mapping[str, Any]) -> LineAnswer:
        stack.clock.now += 86_401
        return await answer(endpoint, body)

    stack.answers.answer = slow  # type: ignore[method-assign]
    await stack.run()
    ended = await stack.now(batch)
    assert (ended.status, ended.completed) == ("expired", 1)
    assert len(await stack.lines(ended.output_file_id)) == 1


@pytest.mark.parametrize("early", [True, False])
async def test_a_cancelled_batch_answers_no_further_line(stack: Stack, early: bool) -> None:
    batch = await stack.begin("a", "b")
    if not early:
        stack.answers.gate = asyncio.Event()
        running = asyncio.create_task(stack.run())
        while not stack.answers.asked:
            await asyncio.sleep(0.01)
    assert (await stack.batches.cancel(ANYONE, batch.id)).status == "cancelling"
    if early:
        await stack.run()
    else:
        assert stack.answers.gate is not None
        stack.answers.gate.set()
        await running
    assert (await stack.now(batch)).status == "cancelled"
    assert stack.answers.asked == ([] if early else ["a"])


async def test_a_cancelled_batch_does_not_wait_for_those_before_it(stack: Stack) -> None:
    long, short = await stack.begin("a", "b"), await stack.begin("c")
    answer = stack.answers.answer

    async def slow(endpoint: str, body: Mapping[str, Any]) -> LineAnswer:
        stack.clock.now += 31
        return await answer(endpoint, body)

    stack.answers.answer = slow  # type: ignore[method-assign]
    await stack.batches.cancel(ANYONE, short.id)
    await stack.run()
    assert ((await stack.now(long)).status, (await stack.now(short)).status) == ("in_progress", "cancelled")


async def test_what_a_crash_left_is_swept_and_what_an_open_batch_wrote_is_not(stack: Stack) -> None:
    batch = await stack.begin("a")
    (stack.folder / "incoming").mkdir(exist_ok=True)
    for name in ("file-unknown.jsonl", f"{batch.output_file_id}.jsonl", "incoming/torn"):
        (stack.folder / name).write_bytes(b"")
    await stack.batches.resume()
    left = sorted(path.name for path in stack.folder.iterdir())
    assert left == sorted([f"{batch.input_file_id}.jsonl", f"{batch.output_file_id}.jsonl"])


async def test_a_file_too_large_leaves_nothing(stack: Stack) -> None:
    async def content() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 10_000

    with pytest.raises(PayloadTooLarge):
        await stack.batches.add_file(ANYONE, "in.jsonl", content(), lambda: "batch")
    assert [path for path in stack.folder.rglob("*") if path.is_file()] == []


async def test_batches_that_have_not_ended_are_bounded(stack: Stack) -> None:
    batch = await stack.begin("a")
    for _ in range(99):
        await stack.batches.create(ANYONE, batch.input_file_id, CHAT, None, {})
    with pytest.raises(Overloaded) as refused:
        await stack.batches.create(ANYONE, batch.input_file_id, CHAT, None, {})
    assert refused.value.retry_after


async def test_what_one_caller_made_is_not_there_for_another_but_for_administrators(stack: Stack) -> None:
    ann, bob = (Principal(f"token:{name}", Scope.WRITE, has_token=True) for name in ("ann", "bob"))
    admin = Principal("token:root", Scope.ADMIN, has_token=True)
    batches, page = stack.batches, Page()
    mine = await stack.begin("a", caller=ann)
    await stack.begin("b", caller=bob)
    for refused in (
        batches.get(bob, mine.id),
        batches.cancel(bob, mine.id),
        batches.get_file(bob, mine.input_file_id),
        batches.delete_file(bob, mine.input_file_id),
        batches.create(bob, mine.input_file_id, CHAT, None, {}),
        anext(batches.read_file(bob, mine.input_file_id)),
    ):
        with pytest.raises(NotFound):
            await refused
    await stack.run()
    done = await batches.get(ann, mine.id)
    for file_id in (done.input_file_id, done.output_file_id):
        assert (await batches.get_file(ann, file_id)).id == (await batches.get_file(admin, file_id)).id
        with pytest.raises(NotFound):
            await batches.get_file(bob, file_id)
    assert [batch.id for batch in await batches.list_batches(ann, page)] == [mine.id]
    assert {file.id for file in await batches.list_files(ann, page, None)} == {done.input_file_id, done.output_file_id}
    assert len(await batches.list_batches(admin, page)) == 2
    assert len(await batches.list_files(admin, page, None)) == 4
