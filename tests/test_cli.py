"""The command line, as a person uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_server import free_port


def llamastead(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMASTEAD_", "LF_"))}
    return subprocess.run(
        [sys.executable, "-m", "llamastead_server.cli", *arguments],
        env={**environment, "LLAMASTEAD_DATA_DIR": str(folder), **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_models_lists_the_model_on_board(tmp_path: Path) -> None:
    listed = llamastead(tmp_path, "models")
    assert listed.returncode == 0, listed.stderr
    assert "llamastead-tiny" in listed.stdout
    assert "gguf" in listed.stdout


def test_help_names_the_commands(tmp_path: Path) -> None:
    shown = llamastead(tmp_path, "--help").stdout
    assert all(command in shown for command in ("serve", "pull", "models"))


def test_pull_from_a_hub_that_is_not_there_says_so(tmp_path: Path) -> None:
    pulled = llamastead(tmp_path, "pull", "org/repo", HF_ENDPOINT="http://127.0.0.1:9")
    assert pulled.returncode == 1
    assert pulled.stderr.startswith("llamastead: ")
    assert "Traceback" not in pulled.stderr


@pytest.mark.parametrize("reference", ["", "no-slash", "../../etc", "a/b/c:d:e"])
def test_a_reference_that_is_none_is_refused(tmp_path: Path, reference: str) -> None:
    pulled = llamastead(tmp_path, "pull", reference, HF_ENDPOINT="http://127.0.0.1:9")
    assert pulled.returncode != 0
    assert "Traceback" not in pulled.stderr


def test_an_example_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    served = llamastead(tmp_path, "serve", "--example", "absent")
    assert served.returncode == 1
    assert "quickstart_rag" in served.stderr
    assert "is ready" not in served.stderr


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("DATABASE_URL", "postgres://x@127.0.0.1/x", "use postgresql://"),
        ("DATABASE_URL", "postgresql+asyncpg://x@127.0.0.1/x", "use postgresql://"),
        ("DATABASE_URL", "mysql://x@127.0.0.1/x", "use postgresql://"),
        ("DATABASE_URL", "sqlite://", "sqlite:///file"),
        ("DATABASE_URL", "sqlite:///:memory:", "sqlite:///file"),
        ("DATABASE_URL", "llamastead.db", "sqlite:///file"),
        ("DATABASE_URL", "postgresql://x:secret@127.0.0.1:1/x", "Connection refused"),
        ("DATABASE_URL", "sqlite:////no/such/folder/x.db", "unable to open"),
        ("MILVUS_URI", "milvus.db", "use http://"),
        ("MILVUS_URI", "127.0.0.1:19530", "use http://"),
        ("MILVUS_URI", "http://127.0.0.1:1", "LLAMASTEAD_MILVUS_URI"),
    ],
)
def test_a_store_that_can_t_be_used_is_named_with_its_setting(
    tmp_path: Path, setting: str, value: str, says: str
) -> None:
    ports = {"LLAMASTEAD_PORT": str(free_port()), "LLAMASTEAD_GRPC_PORT": str(free_port())}
    served = llamastead(tmp_path, "serve", **{f"LLAMASTEAD_{setting}": value}, **ports)
    assert served.returncode == 1
    assert says in served.stderr
    assert "Traceback" not in served.stderr
    assert "secret" not in served.stderr
