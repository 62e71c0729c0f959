"""The task runner over a real database; crashes are real kills of real processes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.task_store import SqlTaskStore
from llamastead_server.domain.errors import InvalidRequest, NotFound, Unavailable
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import TaskFunction, TaskProgress
from llamastead_server.domain.tasks.records import Task, TaskFailed
from llamastead_server.domain.tasks.tasks import TaskRules, TaskRunner

REF = ProjectRef("my-org", "shop")
QUICK = TaskRules(lease=1.0, poll=0.05, first_pause=0.01)


@asynccontextmanager
async def running(
    database_url: str, function: TaskFunction, *, alone: bool = True, rules: TaskRules = QUICK
) -> AsyncIterator[TaskRunner]:
    async with Database(database_url) as database:
        runner = TaskRunner(SqlTaskStore(database), {"job": function}, time.time, alone=alone, rules=rules)
        await runner.start()
        try:
            yield runner
        finally:
            await runner.stop()


async def end_of(runner: TaskRunner, task: Task) -> Task:
    async with asyncio.timeout(30):
        async for state in runner.watch(REF, task.id, every=0.02):
            last = state
    return last


async def test_a_task_runs_reports_and_returns_its_result(database_url: str) -> None:
    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        await progress.report(1, 2, "half way", [{"index": 0}])
        return {"sum": sum(arguments["numbers"]), "of": str(ref)}

    async with running(database_url, job) as runner:
        task = await runner.submit(REF, "job", {"numbers": [1, 2]})
        assert (task.state, task.attempt) == ("PENDING", 0)
        task = await end_of(runner, task)
    assert (task.state, task.result, task.error) == ("SUCCESS", {"sum": 3, "of": "my-org/shop"}, None)
    assert task.meta == {"current": 1, "total": 2, "message": "half way", "files": [{"index": 0}]}


async def test_progress_can_be_watched(database_url: str) -> None:
    goes_on = asyncio.Event()

    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        await progress.report(1, 2)
        await goes_on.wait()
        return {}

    async with running(database_url, job) as runner:
        task = await runner.submit(REF, "job", {})
        seen = []
        async for state in runner.watch(REF, task.id, every=0.02):
            seen.append((state.state, state.meta.get("current")))
            if state.meta.get("current") == 1:
                goes_on.set()
    assert ("STARTED", 1) in seen
    assert seen[-1] == ("SUCCESS", 1)


async def test_an_unknown_task_and_another_projects_task_are_not_found(database_url: str) -> None:
    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        return {}

    async with running(database_url, job) as runner:
        task = await runner.submit(REF, "job", {})
        with pytest.raises(NotFound):
            await runner.get(REF, "absent")
        with pytest.raises(NotFound):
            await runner.get(ProjectRef("my-org", "other"), task.id)


async def test_passing_failures_are_retried_and_then_given_up(database_url: str) -> None:
    starts = []

    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        starts.append(arguments["until"])
        if starts.count(arguments["until"]) < arguments["until"]:
            raise Unavailable("The embedder is restarting.")
        return {}

    async with running(database_url, job) as runner:
        recovered = await runner.submit(REF, "job", {"until": 3})
        hopeless = await runner.submit(REF, "job", {"until": 100})
        recovered, hopeless = await end_of(runner, recovered), await end_of(runner, hopeless)
    assert (recovered.state, recovered.attempt, recovered.error) == ("SUCCESS", 3, None)
    assert (hopeless.state, hopeless.attempt) == ("FAILURE", QUICK.attempts)
    assert (hopeless.error, hopeless.traceback) == ("The embedder is restarting.", None)


async def test_an_expected_failure_is_final_and_a_defect_has_a_traceback(database_url: str) -> None:
    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        raise InvalidRequest("No.") if arguments["expected"] else ZeroDivisionError("oops")

    async with running(database_url, job, rules=replace(QUICK, attempts=2)) as runner:
        refused = await end_of(runner, await runner.submit(REF, "job", {"expected": True}))
        broken = await end_of(runner, await runner.submit(REF, "job", {"expected": False}))
    assert (refused.state, refused.attempt, refused.error, refused.traceback) == ("FAILURE", 1, "No.", None)
    assert (broken.state, broken.attempt, broken.error) == ("FAILURE", 2, "ZeroDivisionError: oops")
    assert "test_tasks.py" in (broken.traceback or "")


async def test_no_more_tasks_run_at_once_than_allowed(database_url: str) -> None:
    now, most = 0, 0

    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return {}

    async with running(database_url, job) as runner:
        tasks = [await runner.submit(REF, "job", {}) for _ in range(6)]
        assert {(await end_of(runner, task)).state for task in tasks} == {"SUCCESS"}
    assert most == QUICK.concurrency


async def test_a_stopped_server_gives_its_task_back_and_the_next_one_finishes_it(database_url: str) -> None:
    started = asyncio.Event()

    async def endless(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        started.set()
        await asyncio.sleep(3600)
        return {}

    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        return {"done": True}

    async with running(database_url, endless) as runner:
        task = await runner.submit(REF, "job", {})
        await started.wait()
    async with Database(database_url) as database:
        waiting = await SqlTaskStore(database).get(REF, task.id)
        assert waiting is not None
        assert (waiting.state, waiting.attempt) == ("PENDING", 0)
    async with running(database_url, job, alone=False) as runner:
        task = await end_of(runner, task)
    assert (task.state, task.result, task.attempt) == ("SUCCESS", {"done": True}, 1)


async def test_cancelling_stops_a_running_task_and_keeps_a_queued_one_from_running(database_url: str) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()
    runs = 0

    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        nonlocal runs
        runs += 1
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()
        return {}

    async with running(database_url, job, rules=replace(QUICK, concurrency=1)) as runner:
        first, second = await runner.submit(REF, "job", {}), await runner.submit(REF, "job", {})
        await started.wait()
        assert (await runner.cancel(REF, second.id)).done
        cancelled = await runner.cancel(REF, first.id)
        assert (cancelled.before.state, cancelled.done, cancelled.stopped) == ("STARTED", True, True)
        assert stopped.is_set()
        for task in (first, second):
            ended = await runner.get(REF, task.id)
            assert (ended.state, ended.cancelled) == ("FAILURE", True)
        assert not (await runner.cancel(REF, first.id)).done
        third = await runner.submit(REF, "job", {})
        while (await runner.get(REF, third.id)).state == "PENDING":
            await asyncio.sleep(0.01)
    assert runs == 2


async def test_deleting_a_project_stops_and_removes_its_tasks(database_url: str) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()
        return {}

    async with running(database_url, job) as runner:
        task = await runner.submit(REF, "job", {})
        await started.wait()
        await runner.delete_project(REF)
        await asyncio.wait_for(stopped.wait(), 10)
        with pytest.raises(NotFound):
            await runner.get(REF, task.id)


async def test_finished_tasks_are_swept_after_their_time(database_url: str) -> None:
    async with Database(database_url) as database:
        store = SqlTaskStore(database)
        await store.add(Task("old", REF, "job", {}, 0.0))
        await store.add(Task("waiting", REF, "job", {}, 0.0))
        claimed = await store.claim("me", ["job"], 1.0, 2.0)
        assert claimed is not None
        await store.settle(replace(claimed, state="SUCCESS"), "me", 10.0, 10.0)
        assert await store.sweep(10.0) == 0
        assert await store.sweep(10.1) == 1
        assert await store.get(REF, claimed.id) is None


FULL = {
    "sqlite": [
        "CREATE TRIGGER no_room BEFORE UPDATE ON tasks WHEN NEW.state = 'SUCCESS' "
        "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = "
        "'disk_full'; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER no_room BEFORE UPDATE ON tasks FOR EACH ROW WHEN (NEW.state = 'SUCCESS') "
        "EXECUTE FUNCTION fail()",
    ],
}
HAS_ROOM = {"sqlite": ["DROP TRIGGER no_room"], "postgresql": ["DROP TRIGGER no_room ON tasks"]}


async def test_a_database_that_takes_no_writes_for_a_while_stops_no_runner(database_url: str) -> None:
    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        return {}

    async with Database(database_url) as database:

        async def execute(*statements: str) -> None:
            await database.write(lambda connection: [connection.execute(sa.text(each)) for each in statements])

        rules = replace(QUICK, lease=0.3, concurrency=2)
        runner = TaskRunner(SqlTaskStore(database), {"job": job}, time.time, alone=True, rules=rules)
        await runner.start()
        try:
            await execute(*FULL[database_url.partition(":")[0]])
            # More than there are runners: each meets the trouble.
            tasks = [await runner.submit(REF, "job", {}) for _ in range(4)]
            for task in tasks:
                while (await runner.get(REF, task.id)).attempt < 1:
                    await asyncio.sleep(0.02)
            await execute(*HAS_ROOM[database_url.partition(":")[0]])
            assert [(await end_of(runner, task)).state for task in tasks] == ["SUCCESS"] * 4
        finally:
            await runner.stop()


async def test_a_task_is_claimed_once_and_only_its_owner_can_change_it(database_url: str) -> None:
    async with Database(database_url) as database:
        store = SqlTaskStore(database)
        await store.add(Task("one", REF, "job", {}, 0.0))
        claims = await asyncio.gather(*(store.claim(f"owner-{n}", ["job"], 1.0, 5.0) for n in range(8)))
        (task,) = [claim for claim in claims if claim is not None]
        assert (task.state, task.attempt) == ("STARTED", 1)
        assert not await store.settle(replace(task, state="SUCCESS"), "stranger", 2.0, 2.0)
        assert await store.claim("stranger", ["job"], 4.9, 9.0) is None
        taken_over = await store.claim("stranger", ["job"], 5.0, 9.0)
        assert taken_over is not None
        assert taken_over.attempt == 2


CRASHING = textwrap.dedent("""
    import asyncio, sys, time
    from llamastead_server.adapters.database import Database
    from llamastead_server.adapters.task_store import SqlTaskStore
    from llamastead_server.domain.names import ProjectRef
    from llamastead_server.domain.tasks.tasks import TaskRunner

    async def job(ref, arguments, progress):
        await progress.report(1, 2)
        print("started", flush=True)
        await asyncio.sleep(3600)

    async def main():
        async with Database(sys.argv[1]) as database:
            runner = TaskRunner(SqlTaskStore(database), {"job": job}, time.time, alone=True)
            await runner.start()
            print((await runner.submit(ProjectRef("my-org", "shop"), "job", {"x": 1})).id, flush=True)
            await asyncio.sleep(3600)

    asyncio.run(main())
""")


@pytest.mark.parametrize("alone", [True, False])
async def test_a_task_survives_kill_9_of_its_server(database_url: str, alone: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", CRASHING, database_url], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = {server.stdout.readline().strip() for _ in range(2)}
        server.send_signal(signal.SIGKILL)
    (task_id,) = lines - {"started"}
    assert "started" in lines

    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        return dict(arguments)

    async with Database(database_url) as database:
        store = SqlTaskStore(database)
        stuck = await store.get(REF, task_id)
        assert stuck is not None
        assert stuck.state == "STARTED"
        # A server of many waits for the lease to run out; 60 s later it has.
        clock = time.time if alone else lambda: time.time() + 60
        runner = TaskRunner(store, {"job": job}, clock, alone=alone, rules=QUICK)
        await runner.start()
        task = await end_of(runner, stuck)
        await runner.stop()
    assert (task.state, task.result, task.attempt) == ("SUCCESS", {"x": 1}, 2)


async def test_a_task_that_came_to_no_good_end_fails_with_its_result(database_url: str) -> None:
    async def job(ref: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
        raise TaskFailed("Nothing could be read.", {"failed_files": 2})

    async with running(database_url, job) as runner:
        task = await end_of(runner, await runner.submit(REF, "job", {}))
    assert (task.state, task.error, task.attempt) == ("FAILURE", "Nothing could be read.", 1)
    assert (task.result, task.traceback) == ({"failed_files": 2}, None)
