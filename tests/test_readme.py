"""The README tells the truth: its example runs as it stands and its table is the settings'."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from fpdf import FPDF

from llamastead_server import settings
from tests.running_server import RunningServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, heading: str) -> str:
    """The first code block of a language under a heading."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


def here(code: str, server: RunningServer) -> str:
    """The same code against the test's ports."""
    assert "localhost:8000" in code or "localhost:50051" in code
    return code.replace("localhost:8000", f"localhost:{server.port}").replace(
        "localhost:50051", f"localhost:{server.grpc_port}"
    )


def run(arguments: list[str], folder: Path = ROOT) -> str:
    finished = subprocess.run(arguments, capture_output=True, text=True, timeout=90, cwd=folder)
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout


def test_the_curl_example_answers_from_the_document(server: RunningServer) -> None:
    answer = json.loads(run(["bash", "-c", here(block("bash", "Ask it something"), server)]))
    assert "gate closes at 21:00." in answer["choices"][0]["message"]["content"]
    assert answer["sources"]


def test_the_openai_example_streams_the_answer(server: RunningServer) -> None:
    assert "gate closes at 21:00." in run([sys.executable, "-c", here(block("python", "Ask it something"), server)])


def test_the_grpc_examples_answer(server: RunningServer) -> None:
    assert run([sys.executable, "-c", here(block("python", "gRPC"), server)]).strip()
    command = here(block("bash", "gRPC"), server).replace(".venv/bin/buf", str(Path(sys.executable).with_name("buf")))
    assert "delta" in run(["bash", "-c", command])


def test_the_prompt_example_answers(server: RunningServer) -> None:
    answer = json.loads(run(["bash", "-c", here(block("bash", "What answers"), server)]))
    assert answer["response"]
    assert answer["model_used"] == "llama3.3"


def test_the_documents_example_processes_and_finds(server: RunningServer, tmp_path: Path) -> None:
    document = FPDF()
    document.add_page()
    document.set_font("Helvetica", size=12)
    document.multi_cell(0, 8, "We conclude that llamas prefer hay to homework.")
    document.output(str(tmp_path / "paper.pdf"))
    script = "set -e\n" + here(block("bash", "Your own documents"), server)
    *_, query = run(["bash", "-c", script], tmp_path).strip().splitlines()
    assert "prefer hay" in query


def test_the_settings_table_is_current() -> None:
    assert settings.table() in README


def test_every_target_the_readme_names_exists() -> None:
    listed = run(["make", "help"])
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)):
        assert f"make {target}" in listed


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_the_environment_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LLAMASTEAD_PORT=8123\nLLAMASTEAD_API_TOKENS=a, b\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMASTEAD_", "LF_"))}
    code = "from llamastead_server.settings import Settings; s = Settings(); print(s.port, s.api_tokens)"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == "8123 ('a', 'b')"
