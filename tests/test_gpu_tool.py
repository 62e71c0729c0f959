"""`make test-gpu` on a machine of which nothing is known but that it has a GPU and a PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
ONLY = """
import builtins, importlib, importlib.metadata, os, sys
sys.path[0] = os.getcwd()
from tools import gpu
owners = importlib.metadata.packages_distributions()
allowed = gpu.closure(tests_only=sys.argv[1] == "test") | {"llamastead"}
usual = builtins.__import__
def asked(name, globals=None, locals=None, fromlist=(), level=0):
    # What others import, they require; what we do is our own affair.
    file = str((globals or {}).get("__file__", ""))
    if file.startswith(sys.path[0] + "/") and "site-packages" not in file:
        mine = {gpu.canonical(owner) for owner in owners.get(name.partition(".")[0], ())}
        torchs = {each for each in mine if gpu._TORCHS_OWN.fullmatch(each)}
        if mine and not level and not mine & allowed and not torchs:
            raise ModuleNotFoundError(f"{name} is not among the wheels", name=name)
    return usual(name, globals, locals, fromlist, level)
builtins.__import__ = asked
from tests.workers import exllama_stub
exllama_stub.install()
for name in sys.argv[2:]:
    importlib.import_module(name)
"""
TESTED = ("tests.gpu.test_exllama", "tests.conftest", "llamastead_server.workers.engine", "benchmarks.exl2",
          "llamastead_server.workers.exllama_job", "llamastead_server.workers.json_grammar", "fastparquet",
          "pandas")  # fmt: skip
BENCHED = ("benchmarks.gpu", "benchmarks.raw_exllama", "llamastead_server.cli", "llamastead_server.app",
           "llamastead_server.workers.engine", "llamastead_server.workers.embedder")  # fmt: skip


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_tool", ROOT / "tools" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "ENVIRONMENT", tmp_path / "venv-gpu")
    monkeypatch.setattr(tool, "WHEELS", tmp_path / "wheels")
    return tool


@pytest.mark.parametrize(("action", "modules"), [("test", TESTED), ("bench", BENCHED)])
def test_all_that_is_imported_on_a_gpu_is_among_the_wheels(action: str, modules: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONLY, action, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("action", ["test", "bench"])
def test_without_a_gpu_it_says_so_and_runs_nothing(action: str, tmp_path: Path) -> None:
    command = [sys.executable, "tools/gpu.py", action, "--results", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "NVIDIA GPU" in done.stderr
    assert not (tmp_path / "results").exists()


def test_an_environment_over_another_sees_what_that_one_sees(tool: ModuleType, tmp_path: Path) -> None:
    # The machine's own Python may be one of a virtual environment, and its packages lie there.
    venv.create(tmp_path / "machine", with_pip=False)
    packages = next((tmp_path / "machine").glob("lib/python3*/site-packages"))
    (packages / "its_torch.py").write_text("here = 1\n")
    code = (
        f"import importlib.util as u, pathlib, subprocess, sys\n"
        f"spec = u.spec_from_file_location('gpu', {str(ROOT / 'tools' / 'gpu.py')!r})\n"
        "tool = u.module_from_spec(spec); spec.loader.exec_module(tool)\n"
        f"target = pathlib.Path({str(tmp_path / 'venv-gpu')!r})\n"
        "options = ['--without-pip', '--system-site-packages', target]\n"
        "subprocess.run([sys.executable, '-m', 'venv', *options], check=True)\n"
        "python = target / 'bin' / 'python'\n"
        "before = subprocess.run([python, '-c', 'import its_torch'], capture_output=True).returncode\n"
        "tool.overlay(next(target.glob('lib/python3*/site-packages')))\n"
        "after = subprocess.run([python, '-c', 'import its_torch']).returncode\n"
        "print(before, after)\n"
    )
    python = tmp_path / "machine" / "bin" / "python"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_what_the_machine_has_as_new_is_kept_and_older_is_replaced(tool: ModuleType) -> None:
    known = {"grpcio": "1.80.0", "numpy": "2.5.2", "torch": "2.11.0+cu130", "protobuf": "", "rich": ""}
    for name, version, kept in (
        ("grpcio", "1.85.1", False), ("numpy", "2.4.6", True), ("Torch", "2.11.0", True), ("pytest", "9", False),
        # The generated code refuses older ones than it was made with, so an unknown one will not do.
        ("protobuf", "7.36.2", False), ("rich", "15.0.0", True),
    ):  # fmt: skip
        assert tool.as_new(known, name, version) == kept, name


def test_wheels_are_shared_out_into_folders_that_fit_a_limit(tool: ModuleType) -> None:
    sizes = {Path(name): size for name, size in (("a", 50), ("b", 30), ("c", 30), ("d", 20), ("e", 200))}
    groups = tool.parts(sizes, 60)
    assert "".join(sorted(str(file) for group in groups for file in group)) == "abcde"
    assert [sum(map(sizes.__getitem__, group)) <= 60 for group in groups].count(False) == 1


def test_what_is_printed_is_kept_though_the_program_is_killed(tool: ModuleType, tmp_path: Path) -> None:
    code = "import os; print('first result', flush=True); os.kill(os.getpid(), 9)"
    assert tool.keeping([sys.executable, "-c", code], tmp_path / "log", {}) == -9
    assert (tmp_path / "log").read_text() == "first result\n"


def test_arguments_go_on_to_what_is_run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[str, str, Path, list[str]]] = []
    monkeypatch.setattr(tool, "require_gpu", lambda: None)
    monkeypatch.setattr(tool, "environment", lambda: "python")
    monkeypatch.setattr(tool, "run", lambda *given: ran.append(given) or 3)
    options = ["-k", "logits and 300", "-x"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "test", *options, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert (ended.value.code, ran) == (3, [("python", "test", tmp_path, options)])
