"""Which CUDA toolkit compiles, with compilers that are scripts."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from llamastead_server.workers import cuda_toolkit
from llamastead_server.workers.cuda_toolkit import NoToolkit, environment, find


def toolkit(folder: Path, *headers: str) -> Path:
    for part, names in (("bin", ["nvcc"]), ("include", ["cuda_runtime.h", *headers])):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / name).touch(mode=0o755)
    return folder


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CPLUS_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(cuda_toolkit, "_USUAL", tmp_path / "usual")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_a_compiler_that_is_a_script_tells_where_it_belongs(tmp_path: Path) -> None:
    real = toolkit(tmp_path / "cuda-13")
    script = tmp_path / "path" / "nvcc"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho '#$ _HERE_=x' >&2\necho '#$ TOP={real}/bin/..' >&2\n")
    script.chmod(0o755)
    assert find() == real


def test_what_is_named_goes_before_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit(tmp_path / "usual")
    assert find() == tmp_path / "usual"
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "mine")))
    assert find() == tmp_path / "mine"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(NoToolkit, match=f"CUDA_HOME is {tmp_path}"):
        find()


def test_headers_that_a_bare_compiler_lacks_come_from_the_wheels_and_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "site" / "nvidia"
    (wheels / "cu13" / "include").mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(wheels)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", "/own")
    bare = toolkit(tmp_path / "usual")
    expected = {"CUDA_HOME": str(bare), "CPLUS_INCLUDE_PATH": f"/own:{wheels / 'cu13' / 'include'}"}
    assert environment() == expected
    for name in ("cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h"):
        (bare / "include" / name).touch()
    assert environment() == {"CUDA_HOME": str(bare)}


def test_without_one_it_says_what_to_install() -> None:
    with pytest.raises(NoToolkit, match="set CUDA_HOME"):
        find()
