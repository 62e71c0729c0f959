"""Other people's clients, unmodified, each in a process of its own: OpenAI's Node SDK, LiteLLM and LangChain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.running_server import RunningServer

HERE = Path(__file__).parent
NODE = HERE / "node"


def run(*command: str | Path, **environment: str) -> dict[str, Any]:
    """Runs a client and gives what it printed last."""
    finished = subprocess.run(command, capture_output=True, text=True, timeout=110, env={**os.environ, **environment})
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture
def base_url(server: RunningServer) -> str:
    return f"{server.url}/v1/projects/default/quickstart"


@pytest.fixture(scope="session")
def node_client() -> Path:
    """The Node SDK, installed as its lock file says."""
    if not (NODE / "node_modules" / "openai").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", f"--prefix={NODE}"], check=True, capture_output=True)
    return NODE / "chat.js"


def test_openais_node_sdk(node_client: Path, base_url: str) -> None:
    found = run("node", node_client, base_url)
    assert found["text"] == found["whole"] == found["afterLeaving"] != ""
    assert (found["role"], found["finishReason"] in ("stop", "length")) == ("assistant", True)
    assert found["usage"]["total_tokens"] == found["total"] > 0
    assert found["session"]
    assert found["models"] == ["default"]
    for name, status, kind in (
        ("absent", 404, "NotFoundError"),
        ("outOfRange", 422, "UnprocessableEntityError"),
        ("malformed", 400, "BadRequestError"),
    ):
        assert (found[name]["status"], found[name]["name"]) == (status, kind)
        # The SDK shows `error.message`; without one it says "status code (no body)".
        assert "no body" not in found[name]["message"]
        assert found[name]["requestId"]


def test_litellm(base_url: str) -> None:
    # Else it fetches a list of prices.
    found = run(sys.executable, HERE / "litellm_chat.py", base_url, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert found["text"] == found["whole"] == found["async_whole"] == found["async_text"] != ""
    assert found["finish_reason"] in ("stop", "length")
    assert found["stream_total"] == found["total"] > 0
    assert found["absent"] == "NotFoundError"
    assert found["out_of_range"] in ("UnprocessableEntityError", "BadRequestError")
    assert found["malformed"] in ("BadRequestError", "ContextWindowExceededError")


def test_langchain(base_url: str) -> None:
    found = run(sys.executable, HERE / "langchain_chat.py", base_url)
    assert found["text"] == found["whole"] == found["async_whole"] != ""
    assert found["batch"] == [found["whole"]] * 2
    assert found["finish_reason"] in ("stop", "length")
    assert found["usage"]["total_tokens"] == found["stream_usage"]["total_tokens"] > 0
