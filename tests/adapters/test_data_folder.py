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
