"""ExLlamaV2's CUDA extension: compiled once into a folder that stays, then loaded from there.

The package compiles on its first import, into a cache that a killed build leaves locked for ever. Here one build runs
at a time under a lock that dies with its process, so whatever an earlier one left is known to be stale; one that
outlives the worker that began it is waited for. A build counts only once the result has been loaded.
`python -m llamastead_server.workers.exllama_build FOLDER` builds ahead.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from llamastead_server.workers import cuda_toolkit

NAME = "exllamav2_ext"
Report = Callable[[float, str], None]
"""Told the share that is done, 0 to 1, and what is being done."""

_READY = "ready"
_BUILD = "import exllamav2.ext"
_LAST_WORDS = 2000
_POLL = 0.5


class BuildFailed(Exception):
    """The extension could not be compiled or loaded; the message says why."""


def load_extension(folder: Path, report: Report) -> ModuleType:
    """Makes `import exllamav2` possible in this process, compiling its extension first if need be.

    Args:
        folder: Holds the compiled extensions, one for each combination of versions and GPUs.
        report: Told how the build goes.

    Raises:
        BuildFailed: It could not be compiled or loaded.
    """
    if (known := sys.modules.get(NAME)) is not None:
        return known
    if importlib.util.find_spec(NAME) is not None:
        return _installed()
    place = folder / fingerprint()
    library = place / NAME / f"{NAME}.so"
    if not (place / _READY).exists():
        build(place, report)
    try:
        return _load(library)
    except (ImportError, OSError) as error:
        # A driver or compiler library changed under it: the next start compiles anew.
        (place / _READY).unlink(missing_ok=True)
        raise BuildFailed(f"The compiled extension of ExLlamaV2 does not load: {error}") from None


def fingerprint() -> str:
    """Names what a compiled extension depends on."""
    import torch

    devices = range(torch.cuda.device_count())
    capabilities = sorted({torch.cuda.get_device_capability(index) for index in devices})
    parts = [
        importlib.metadata.version("exllamav2"),
        torch.__version__,
        str(torch.version.cuda),
        sys.implementation.cache_tag,
        repr(capabilities),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def build(place: Path, report: Report, command: list[str] | None = None) -> None:
    """Compiles into `place`, or waits for another process that does.

    Args:
        place: Becomes the folder of torch's compiled extensions.
        report: Told how it goes.
        command: Runs the compilation; the package's own import by default.

    Raises:
        BuildFailed: There is no compiler, or the compilation failed; the message has its last words.
    """
    place.mkdir(parents=True, exist_ok=True)
    report(0.0, "waiting for another build of the GPU kernels")
    with (place / "building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (place / _READY).exists():
            return
        target = place / NAME
        # torch waits for this file without end; whoever made it is dead, or it would hold our lock.
        (target / "lock").unlink(missing_ok=True)
        environment = _environment(place)
        if command is None:
            try:
                environment |= cuda_toolkit.environment()
            except cuda_toolkit.NoToolkit as error:
                raise BuildFailed(str(error)) from None
        _compile(target, environment, command or [sys.executable, "-c", _BUILD], lock.fileno(), report)
        ready = place / f"{_READY}.part"
        ready.touch()
        ready.replace(place / _READY)


def _compile(target: Path, environment: dict[str, str], command: list[str], lock: int, report: Report) -> None:
    log = target.parent / "build.log"
    with log.open("wb") as output:
        # It keeps the lock if this process is killed: two compilers would write the same files.
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=[lock]
        )
        try:
            while (status := _wait(child)) is None:
                done, total = _progress(target)
                report(done / max(total, 1), f"compiling the GPU kernels, {done} of {total or '?'}")
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if status:
        words = log.read_bytes()[-_LAST_WORDS:].decode(errors="replace").strip()
        raise BuildFailed(f"ExLlamaV2's CUDA extension could not be compiled; see {log}. It ended with: {words}")


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(_POLL)
    except subprocess.TimeoutExpired:
        return None


def _progress(target: Path) -> tuple[int, int]:
    """Object files that are there, and that are to be made."""
    try:
        plan = (target / "build.ninja").read_text()
    except OSError:
        return 0, 0
    return len(list(target.glob("*.o"))), sum(line.startswith("build ") and ".o:" in line for line in plan.splitlines())


def _environment(place: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment["TORCH_EXTENSIONS_DIR"] = str(place)
    # Next to the interpreter is where `ninja` was installed, whether or not that is on the path.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment.setdefault("MAX_JOBS", str(_jobs()))
    # Images name every GPU that PyTorch knows; without it, those that are here are compiled for.
    environment.pop("TORCH_CUDA_ARCH_LIST", None)
    return environment


def _jobs() -> int:
    """Compilers at once: each takes up to three gigabytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // (3 << 30)))


def _installed() -> ModuleType:
    """The extension that a wheel of the package brought; with it the package itself compiles nothing."""
    import torch  # noqa: F401  # the extension links against its libraries

    try:
        return importlib.import_module(NAME)
    except (ImportError, OSError) as error:
        raise BuildFailed(
            f"The extension that came with the package exllamav2 does not load: {error}. Install the package for this "
            "PyTorch, or from PyPI, whose extension is compiled here."
        ) from None


def _load(library: Path) -> ModuleType:
    import torch  # noqa: F401  # the extension links against its libraries

    spec = importlib.util.spec_from_file_location(NAME, library)
    if spec is None or spec.loader is None:
        raise ImportError(f"{library} is no extension")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    return module


def main() -> None:
    """Builds ahead of the first start."""
    parser = argparse.ArgumentParser(description="Compiles ExLlamaV2's CUDA extension.")
    parser.add_argument("folder", type=Path, help="where compiled extensions are kept")
    started, said = time.monotonic(), ""

    def report(share: float, step: str) -> None:
        nonlocal said
        if step != said:
            said = step
            print(f"{time.monotonic() - started:6.0f} s  {share:4.0%}  {step}", flush=True)

    try:
        load_extension(parser.parse_args().folder, report)
    except BuildFailed as failure:
        print(failure, file=sys.stderr)
        sys.exit(1)
    print("The GPU kernels are ready.")


if __name__ == "__main__":
    main()
