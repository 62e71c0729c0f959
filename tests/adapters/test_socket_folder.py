"""Folders for sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamastead_server.adapters.socket_folder import socket_folder

HOLD = """
from llamastead_server.adapters.socket_folder import socket_folder
with socket_folder() as folder:
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_folder_is_private_and_goes_with_its_block() -> None:
    with socket_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_what_a_killed_server_left_is_removed_and_what_another_uses_is_not() -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, living = holders
    folders = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
    try:
        killed.kill()
        killed.wait()
        for folder in folders:
            os.utime(folder, (0, 0))
        with socket_folder():
            assert [folder.exists() for folder in folders] == [False, True]
    finally:
        living.communicate("\n")
        killed.communicate()
