"""Converts a model to EXL2 with ExLlamaV2's own program.

The program compiles the extension again if it is not told of the compiled one, calibrates by attention without a causal
mask where flash-attn is missing, and reads the rope settings of some configs wrong; so it runs in here, after all of
that was set right.
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from llamastead_server.workers import exllama_build, exllama_config, paged_attention


def convert(model: Path, target: Path, bits: float, extensions: Path) -> None:
    """Converts in a process of its own; calibrated on short texts, which speed does not depend on.

    Raises:
        CalledProcessError: It failed; its `stdout` says how.
    """
    command = [sys.executable, "-m", "benchmarks.exl2", str(model), str(target), str(bits), str(extensions)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main() -> None:
    """Converts what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("bits", type=float)
    parser.add_argument("extensions", type=Path)
    given = parser.parse_args()
    paged_attention.prepare_environment()
    exllama_build.load_extension(given.extensions, lambda share, step: None)
    with tempfile.TemporaryDirectory() as private:
        source, work = Path(private) / "model", Path(private) / "work"
        exllama_config.staged(given.model, source)
        work.mkdir()
        sys.argv = [
            "convert_exl2", "-i", str(source), "-o", str(work), "-nr", "-cf", str(given.target), "-b", str(given.bits),
            "-hb", "6", "-l", "512", "-ml", "512",
        ]  # fmt: skip
        runpy.run_module("exllamav2.conversion.convert_exl2", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
