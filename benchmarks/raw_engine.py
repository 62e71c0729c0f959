"""The engine with nothing around it: llama.cpp in a process of its own, called straight from threads.

This is what the server is measured against. The model is loaded exactly as the engine worker loads it. The
process reads rounds as JSON lines from stdin and answers each with one JSON line; it ends with its stdin.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import xllamacpp

from benchmarks.random_llama import rendered
from benchmarks.streams import Reader, Stream, burst, joining
from llamastead_server.domain.models.gguf_header import read_header
from llamastead_server.workers.llamacpp import LoadOptions, server_parameters

_GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "stream": True}


class RawEngine:
    """A raw engine, seen from the benchmark's process; use it as a context manager."""

    def __init__(self, options: LoadOptions) -> None:
        command = [
            sys.executable, "-m", "benchmarks.raw_engine", str(options.path), str(options.context_length),
            str(options.slots), str(options.threads),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def burst(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        """`streams.burst` in the engine's process."""
        return self._run({"prompts": list(prompts), "tokens": tokens})

    def joining(self, running: Sequence[str], prompts: Sequence[str], tokens: int) -> list[Stream]:
        """`streams.joining` in the engine's process."""
        return self._run({"running": list(running), "prompts": list(prompts), "tokens": tokens})

    def _run(self, asked: dict[str, Any]) -> list[Stream]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return [Stream(**stream) for stream in self._read()]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)["answer"]
        raise RuntimeError(f"the raw engine ended with status {self._process.wait()}")


def _complete(server: Any, prompt: str, tokens: int, reader: Reader) -> Stream | None:
    times: list[float] = []
    last: dict[str, Any] = {}
    stopped = False

    def hear(event: Any) -> bool:
        nonlocal stopped
        if any(choice["text"] for choice in event.get("choices", ())):
            times.append(time.perf_counter())
        last.update(event)
        stopped = not reader.heard()
        return stopped

    started = time.perf_counter()
    server.handle_completions({**_GREEDY, "prompt": rendered(prompt), "max_tokens": tokens}, hear)
    if stopped:
        return None
    usage = last.get("usage")
    if usage is None or not times:
        raise RuntimeError(f"llama.cpp failed: {last}")
    return Stream(started, times[0], times[-1], usage["prompt_tokens"], usage["completion_tokens"], len(times))


def main() -> None:
    """Loads the model and serves rounds until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("context_length", type=int)
    parser.add_argument("slots", type=int)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    options = LoadOptions(given.model, given.context_length, given.slots, given.threads)
    with tempfile.TemporaryDirectory() as folder:
        parameters = server_parameters(options, read_header(options.path), Path(folder) / "llama.sock", "unused")
        server = xllamacpp.Server(parameters)
        print(json.dumps({"answer": "ready"}), flush=True)
        complete = functools.partial(_complete, server)
        for line in sys.stdin:
            asked = json.loads(line)
            run = joining if "running" in asked else burst
            print(json.dumps({"answer": [stream.plain() for stream in run(complete, **asked)]}), flush=True)


if __name__ == "__main__":
    main()
