"""Runs the GPU tests or benchmarks where there is an NVIDIA GPU, or collects the wheels that such a machine lacks.

`make test-gpu`, `make bench-gpu` and `make gpu-wheels` call it. The machine keeps its own PyTorch, which fits its
driver, and needs no network: what else is missing comes from the folder of wheels. It uses the standard library only,
because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-gpu"
WHEELS = ROOT / "build" / "gpu-wheels"
PLATFORMS = [
    *(f"manylinux_2_{release}_x86_64" for release in range(39, 4, -1)),
    *(f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")),
    "linux_x86_64",
]
"""What wheels for Linux on x86-64 may be tagged as, from the newest C library down."""
TESTED = (
    "exllamav2", "gguf", "googleapis-common-protos", "grpcio", "httpx", "huggingface-hub", "jinja2",
    "lm-format-enforcer", "pydantic-settings", "pytest", "pytest-asyncio", "pytest-timeout", "pyyaml", "setuptools",
    "transformers",
)  # fmt: skip
"""What the tests need, each with all that it requires in turn; the benchmarks need the whole server beside it."""
_TORCHS_OWN = re.compile(r"(torch|triton|nvidia-.*|cuda-.*|pytorch-.*)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["test", "bench", "wheels"])
    parser.add_argument("--python", default="3.12", help="wheels: the Python of the GPU machine")
    parser.add_argument("--tests-only", action="store_true", help="wheels: leave out what only the benchmarks need")
    given, rest = parser.parse_known_args()
    if given.action == "wheels":
        wheels(given.python, tests_only=given.tests_only)
        return
    require_gpu()
    python = environment()
    # The machine's packages are of other versions, which may warn of other things.
    commands = {"test": ["-m", "pytest", "tests/gpu", "-m", "gpu", "-W", "default"], "bench": ["-m", "benchmarks.gpu"]}
    path = os.pathsep.join(str(ROOT / folder) for folder in ("server", "gen/python", "."))
    done = subprocess.run(
        [python, *commands[given.action], *rest], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    sys.exit(done.returncode)


def require_gpu() -> None:
    """Ends the program unless this machine has a GPU and a PyTorch that sees it."""
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"], check=False).returncode:
        sys.exit("This needs a machine with an NVIDIA GPU: nvidia-smi finds none here. Nothing was run.")
    see = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", see], check=False).returncode:
        sys.exit(
            f"{sys.executable} has no PyTorch that sees the GPU. Name one that has, for example "
            "`make test-gpu PYTHON=/usr/bin/python3.12`. Nothing was run."
        )


def environment() -> str:
    """Makes a virtual environment over the machine's packages, adding those it lacks; returns its Python."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(ENVIRONMENT)], check=True)
    present = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(*[d.name for d in m.distributions()])"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    known = {canonical(name) for name in present.split()}
    lacking = [wheel for wheel in sorted(WHEELS.glob("*.whl")) if canonical(wheel.name.split("-")[0]) not in known]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    if lacking:
        print(f"Installing {len(lacking)} wheels into {ENVIRONMENT.name}.", flush=True)
        subprocess.run([*pip, *map(str, lacking)], check=True)
    if "llamastead" not in known:
        subprocess.run([*pip, "--no-build-isolation", "--editable", str(ROOT)], check=True)
    return str(python)


def wheels(python: str, *, tests_only: bool) -> None:
    """Downloads the wheels of everything needed but PyTorch, for Linux on x86-64 and the given Python."""
    pinned = sorted(f"{name}=={importlib.metadata.version(name)}" for name in closure(tests_only=tests_only))
    WHEELS.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--dest", str(WHEELS), "--quiet"]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *pinned], check=True)
    size = sum(wheel.stat().st_size for wheel in WHEELS.glob("*.whl"))
    print(f"{len(pinned)} wheels for Python {python}, {size >> 20} MiB, are in {WHEELS.relative_to(ROOT)}.")


def closure(*, tests_only: bool) -> set[str]:
    """The needed packages and what they require, as installed here, without PyTorch and what comes with it."""
    named = list(TESTED)
    if not tests_only:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        named += [*project["dependencies"], *project["optional-dependencies"]["cuda"]]
    found: set[str] = set()
    waiting = [canonical(match.group()) for each in named if (match := _NAME.match(each))]
    while waiting:
        name = waiting.pop()
        if name in found or _TORCHS_OWN.fullmatch(name):
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            # A requirement of another platform or of an extra.
            continue
        found.add(name)
        for requirement in requirements:
            match = _NAME.match(requirement)
            if match is not None and "extra ==" not in requirement:
                waiting.append(canonical(match.group()))
    return found


def canonical(name: str) -> str:
    """A package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
