"""Runs the benchmarks: `python -m benchmarks [--quick] [name ...]`; `make bench` runs them all.

Results are printed as Markdown and written to `bench-results/`, with every sample as JSON beside them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks import generation, ingestion, projects, retrieval
from benchmarks.measure import Result

_RESULTS = Path("bench-results")


def main() -> None:
    """Runs the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="generation, projects, retrieval, ingestion")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast")
    parser.add_argument("--corpus", type=Path, help="folder of text files for retrieval, instead of made-up ones")
    given = parser.parse_args()
    known: dict[str, Callable[[], Result]] = {
        "generation": lambda: generation.run(given.quick),
        "projects": lambda: projects.run(given.quick),
        "retrieval": lambda: retrieval.run(given.quick, given.corpus),
        "ingestion": lambda: ingestion.run(given.quick),
    }
    unknown = set(given.names) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    _RESULTS.mkdir(exist_ok=True)
    for name in given.names or known:
        load = os.getloadavg()[0]
        result = known[name]()
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        note = f"Load average at the start: {load:.1f} on {os.cpu_count()} cores."
        (_RESULTS / f"{stamp}-{name}.json").write_text(json.dumps(result.plain() | {"load": load}, indent=1))
        (_RESULTS / f"{stamp}-{name}.md").write_text(f"{result.markdown()}\n\n{note}\n")
        print(f"{result.markdown()}\n\n{note}\n", flush=True)


if __name__ == "__main__":
    main()
