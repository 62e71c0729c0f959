"""The prebuild step, with a compiler that is a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from llamastead_server.workers import exllama_build
from llamastead_server.workers.exllama_build import NAME, BuildFailed, build, fingerprint, load_extension

COMPILER = """
import os, pathlib, sys, time
place = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "exllamav2_ext"
place.mkdir(exist_ok=True)
if "TORCH_CUDA_ARCH_LIST" in os.environ:
    sys.exit("it would compile for what is not here")
if (place / "lock").exists():
    sys.exit("it would wait for ever")
(place / "lock").touch()
(place / "build.ninja").write_text("build a.o: compile a\\nbuild b.o: compile b\\nbuild x.so: link a.o b.o\\n")
with (place / "runs").open("a") as runs:
    runs.write(os.environ["MAX_JOBS"] + (" after another" if (place / "b.o").exists() else "") + "\\n")
(place / "pid").write_text(str(os.getpid()))
(place / "a.o").touch()
time.sleep({pause})
(place / "b.o").touch()
{end}
(place / "lock").unlink()
"""


def compiler(pause: float = 0.0, end: str = "") -> list[str]:
    return [sys.executable, "-c", COMPILER.replace("{pause}", str(pause)).replace("{end}", end)]


def runs(place: Path) -> int:
    return len((place / NAME / "runs").read_text().splitlines())


def test_it_is_built_once_and_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 8.6 9.0 10.0 12.0+PTX")
    told: list[tuple[float, str]] = []
    for _ in range(2):
        build(tmp_path / "k", lambda share, step: told.append((share, step)), compiler(pause=1.2))
    assert runs(tmp_path / "k") == 1
    assert (0.5, "compiling the GPU kernels, 1 of 2") in told


def test_a_failure_says_why_and_the_next_attempt_starts_over(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="no such header"):
        build(tmp_path / "k", lambda *_: None, compiler(end="sys.exit('no such header')"))
    build(tmp_path / "k", lambda *_: None, compiler())
    assert runs(tmp_path / "k") == 2


def kill_a_worker_that_builds(place: Path, pause: float) -> int:
    """Returns the compiler's process."""
    source = (
        "import sys, pathlib\n"
        "from llamastead_server.workers.exllama_build import build\n"
        f"build(pathlib.Path({str(place)!r}), lambda *_: None, {compiler(pause=pause)!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", source]) as first:
        deadline = time.monotonic() + 60
        while not (place / NAME / "a.o").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.kill()
    assert (place / NAME / "lock").exists()
    assert not (place / "ready").exists()
    return int((place / NAME / "pid").read_text())


def test_the_lock_of_a_killed_build_does_not_hold_the_next_one(tmp_path: Path) -> None:
    os.kill(kill_a_worker_that_builds(tmp_path / "k", 60.0), signal.SIGKILL)
    build(tmp_path / "k", lambda *_: None, compiler())
    assert runs(tmp_path / "k") == 2


def test_a_compiler_that_outlives_its_worker_is_waited_for(tmp_path: Path) -> None:
    kill_a_worker_that_builds(tmp_path / "k", 2.0)
    build(tmp_path / "k", lambda *_: None, compiler())
    assert (tmp_path / "k" / NAME / "runs").read_text().endswith(" after another\n")


def test_two_workers_build_once(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=build, args=(tmp_path / "k", lambda *_: None, compiler(pause=0.5))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs(tmp_path / "k") == 1


def test_what_is_built_is_loaded_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    built = ModuleType(NAME)
    loaded: list[Path] = []

    def load(library: Path) -> ModuleType:
        loaded.append(library)
        return built

    monkeypatch.setattr(exllama_build, "_load", load)
    monkeypatch.setattr(
        exllama_build, "build", lambda place, report: (place.mkdir(parents=True), (place / "ready").touch())
    )
    assert load_extension(tmp_path, lambda *_: None) is built
    assert loaded == [tmp_path / fingerprint() / NAME / f"{NAME}.so"]
    assert load_extension(tmp_path, lambda *_: None) is built


@pytest.mark.parametrize(
    ("source", "reason"), [("here = 1", ""), ("raise ImportError('undefined symbol')", "undefined")]
)
def test_what_came_compiled_with_the_package_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, NAME, ModuleType(NAME))
    monkeypatch.delitem(sys.modules, NAME)
    (tmp_path / f"{NAME}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    if reason:
        with pytest.raises(BuildFailed, match=reason):
            load_extension(tmp_path / "k", lambda *_: None)
    else:
        assert load_extension(tmp_path / "k", lambda *_: None).here == 1
    assert not (tmp_path / "k").exists()


def test_a_library_that_does_not_load_is_built_anew_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    place = tmp_path / fingerprint()
    (place / NAME).mkdir(parents=True)
    (place / NAME / f"{NAME}.so").write_bytes(b"no library")
    (place / "ready").touch()
    with pytest.raises(BuildFailed, match="does not load"):
        load_extension(tmp_path, lambda *_: None)
    assert not (place / "ready").exists()


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(BuildFailed, match="CUDA_HOME"):
        build(tmp_path / "k", lambda *_: None)
