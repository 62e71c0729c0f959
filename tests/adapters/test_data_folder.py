from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llamastead_server.adapters.data_folder import DataFolder
from llamastead_server.domain.errors import Conflict

HOLD = """
import sys, time, pathlib
from llamastead_server.adapters.data_folder import DataFolder
with DataFolder(pathlib.Path(sys.argv[1])) as folder:
    (folder.sockets / "left-behind").touch()
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_folder_serves_one_server_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        with pytest.raises(Conflict, match="Another server uses"), DataFolder(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with DataFolder(tmp_path) as folder:
        assert not list(folder.sockets.iterdir())
        assert folder.sockets.stat().st_mode & 0o777 == 0o700
    assert not folder.sockets.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Conflict, match="file"), DataFolder(tmp_path / "file" / "data"):
        pass


def test_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "data") as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_an_earlier_version_left_open_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    (data / ".lock").touch()
    with DataFolder(data):
        assert data.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_there_for_something_else_keeps_its_mode(tmp_path: Path) -> None:
    data, temporary = tmp_path / "data", tmp_path / "tmp"
    data.mkdir()
    data.chmod(0o755)
    temporary.mkdir()
    temporary.chmod(0o1777)
    (temporary / ".lock").touch()
    for path, mode in ((data, 0o755), (temporary, 0o1777)):
        with DataFolder(path):
            assert path.stat().st_mode & 0o7777 == mode
