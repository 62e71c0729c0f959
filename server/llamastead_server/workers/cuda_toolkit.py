"""The CUDA toolkit that compiles for this PyTorch.

PyTorch takes the folder above whichever `nvcc` is on the path, also where that is a script beside no headers, and its
own headers include those of CUDA's libraries, which a bare compiler lacks and PyTorch's wheels bring.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_USUAL = Path("/usr/local/cuda")
_HEADERS = ("cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")
"""What PyTorch's headers include of CUDA's libraries."""


class NoToolkit(Exception):
    """There is no CUDA toolkit; the message says what to install."""


def environment() -> dict[str, str]:
    """What a compilation needs in its environment beside what is there.

    Raises:
        NoToolkit: No compiler was found.
    """
    home = find()
    settings = {"CUDA_HOME": str(home)}
    if not all((home / "include" / header).exists() for header in _HEADERS):
        found = [str(folder) for folder in _wheels("include")]
        # Searched behind everything else, so that the toolkit's own headers win.
        known = os.environ.get("CPLUS_INCLUDE_PATH")
        settings["CPLUS_INCLUDE_PATH"] = os.pathsep.join([*([known] if known else []), *found])
    return settings


def find() -> Path:
    """The toolkit's folder: the one CUDA_HOME names, else the first that has a compiler with its headers.

    Raises:
        NoToolkit: There is none.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for folder in [Path(named)] if named else _candidates():
        headers = (folder / "include", folder / "targets" / "x86_64-linux" / "include")
        if (folder / "bin" / "nvcc").exists() and any((each / "cuda_runtime.h").exists() for each in headers):
            return folder.resolve()
    where = f"CUDA_HOME is {named}, which holds none" if named else "none was found"
    raise NoToolkit(
        "ExLlamaV2's kernels have to be compiled once, which needs the CUDA toolkit (nvcc and its headers) of "
        f"PyTorch's version, and {where}. Install it and set CUDA_HOME to its folder."
    )


def _candidates() -> Iterator[Path]:
    if (compiler := shutil.which("nvcc")) is not None:
        # What it says it is part of; the file itself may be a script or a link.
        done = subprocess.run(
            [compiler, "--dryrun", "-x", "cu", "/dev/null"], check=False, capture_output=True, text=True
        )
        if top := re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE):
            yield Path(top.group(1).strip())
        yield Path(compiler).resolve().parent.parent
    yield _USUAL
    yield from (folder.parent for folder in _wheels("bin"))


def _wheels(part: str) -> list[Path]:
    """Folders of that name in NVIDIA's packages, which PyTorch's wheels require."""
    spec = importlib.util.find_spec("nvidia")
    places = (spec.submodule_search_locations or []) if spec is not None else []
    return sorted(folder for place in places for folder in Path(place).glob(f"*/{part}") if folder.is_dir())
