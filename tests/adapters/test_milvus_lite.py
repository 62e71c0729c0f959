from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamastead_server.adapters.milvus_lite import MilvusLite
from llamastead_server.domain.errors import Unavailable

OWNER = """
import sys, time
from pathlib import Path
from llamastead_server.adapters.milvus_lite import MilvusLite
lite = MilvusLite(Path(sys.argv[1]))
lite.start()
print(lite.pid, flush=True)
time.sleep(60)
"""


def owner(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process of its own that holds the store, and its child's process id."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_no_child_is_left_when_its_owner_is_killed(tmp_path: Path) -> None:
    process, child = owner(tmp_path)
    assert runs(child)
    end(process)
    assert eventually(lambda: not runs(child))


def test_a_killed_server_can_be_started_again_at_once(tmp_path: Path) -> None:
    for _ in range(3):
        process, _ = owner(tmp_path)
        end(process)
    lite = MilvusLite(tmp_path)
    socket = Path(lite.start().removeprefix("unix:"))
    # What the killed ones left is gone.
    assert sorted(path.suffix for path in socket.parent.iterdir()) == ["", ".sock"]
    lite.stop()


def test_the_folder_is_not_opened_while_a_killed_server_s_child_still_has_it_open(tmp_path: Path) -> None:
    holding = (tmp_path / "milvus.lock").open("a")
    fcntl.flock(holding, fcntl.LOCK_EX)
    with pytest.raises(Unavailable, match="in use"):
        MilvusLite(tmp_path, wait=0.2).start()
    letting_go = threading.Timer(0.3, holding.close)
    letting_go.start()
    lite = MilvusLite(tmp_path, wait=10)
    lite.start()
    assert holding.closed
    lite.stop()
    letting_go.join()


def test_a_second_server_on_the_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    first = MilvusLite(tmp_path)
    first.start()
    try:
        for _ in range(2):
            with pytest.raises(Unavailable, match="in use by another server"):
                MilvusLite(tmp_path, wait=0.1).start()
        assert first.alive
    finally:
        first.stop()


def test_ctrl_c_does_not_reach_the_child(tmp_path: Path) -> None:
    lite = MilvusLite(tmp_path)
    lite.start()
    try:
        assert lite.pid is not None
        assert os.getpgid(lite.pid) != os.getpgid(0)
    finally:
        lite.stop()


def test_stopping_ends_the_child_and_leaves_no_sockets(tmp_path: Path) -> None:
    lite = MilvusLite(tmp_path)
    socket = Path(lite.start().removeprefix("unix:"))
    child = lite.pid
    assert child is not None
    assert socket.exists()
    lite.stop()
    assert not runs(child)
    assert not socket.parent.exists()
    lite.stop()


def test_a_child_that_ignores_the_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamastead_server.adapters.milvus_lite._STOP_SECONDS", 0.2)
    lite = MilvusLite(tmp_path)
    lite.start()
    child = lite.pid
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    lite.stop()
    assert not runs(child)
