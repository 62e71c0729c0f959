"""Supervision, over real processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llamastead_server.adapters.loaded_model import EngineProbe
from llamastead_server.adapters.supervision import Supervision
from llamastead_server.adapters.worker_process import WorkerProcess
from llamastead_server.domain.errors import Unavailable

MODULE = "tests.workers.sleepy_worker"
QUICK = Supervision(
    start_timeout=30, heartbeat_interval=0.1, heartbeat_timeout=0.5, heartbeat_failures=2, first_backoff=0.05
)


@pytest.fixture
async def worker() -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess("sleepy", MODULE, [], EngineProbe(), QUICK)
    await worker.start()
    yield worker
    await worker.stop()


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_started_worker_is_ready_and_answers(worker: WorkerProcess) -> None:
    assert worker.state == "ready"
    assert (await EngineProbe()(worker.channel)).state == "ready"


async def test_stopping_ends_the_process(worker: WorkerProcess) -> None:
    pid = worker.pid
    assert pid is not None
    await worker.stop()
    assert worker.state == "stopped"
    assert not alive(pid)
    with pytest.raises(Unavailable):
        _ = worker.channel


async def test_a_killed_worker_is_started_again(worker: WorkerProcess) -> None:
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: worker.state != "ready")
    await worker.wait_ready(20)
    assert worker.pid != pid
    assert worker.restarts == 1
    assert "SIGKILL" in worker.last_error


async def test_a_stopped_clock_is_noticed_and_replaced(worker: WorkerProcess) -> None:
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: worker.state != "ready")
    assert "hung" in worker.last_error
    await worker.wait_ready(20)
    assert not alive(pid)


async def test_a_worker_comes_back_when_the_reason_that_kept_it_down_is_gone(
    worker: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.pid is not None
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: "could not be started" in worker.last_error)
        assert worker.state != "ready"
    await worker.wait_ready(20)


async def test_a_worker_without_a_place_for_its_socket_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(Unavailable, match="No such file"):
        await WorkerProcess("sleepy", MODULE, [], EngineProbe(), QUICK).start()


async def test_a_worker_that_cannot_start_says_why_and_is_not_retried() -> None:
    worker = WorkerProcess("sleepy", MODULE, ["--die"], EngineProbe(), QUICK)
    with pytest.raises(Unavailable, match="the disk is on fire"):
        await worker.start()
    assert worker.state == "stopped"
    assert worker.restarts == 0


async def test_a_start_that_is_given_up_leaves_no_process() -> None:
    worker = WorkerProcess("sleepy", MODULE, [], EngineProbe(), QUICK)
    start = asyncio.create_task(worker.start())
    await until(lambda: worker.pid is not None)
    pid = worker.pid
    assert pid is not None
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not alive(pid)


async def test_what_a_worker_prints_is_logged_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    worker = WorkerProcess("sleepy", MODULE, [], EngineProbe(), QUICK)
    with caplog.at_level(logging.INFO, logger="llamastead.worker.sleepy"):
        await worker.start()
        await worker.stop()
    assert ("llamastead.worker.sleepy", logging.WARNING, "hello from the worker") in caplog.record_tuples


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    script = f"""
import asyncio
from llamastead_server.adapters.loaded_model import EngineProbe
from llamastead_server.adapters.worker_process import WorkerProcess
async def main():
    worker = WorkerProcess("sleepy", {MODULE!r}, [], EngineProbe())
    await worker.start()
    print(worker.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
