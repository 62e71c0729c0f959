"""The engine with nothing around it: llama.cpp in a process of its own, called straight from threads.

This is what the server is measured against. The model is loaded exactly as the engine worker loads it. The
process reads rounds as JSON lines from stdin and answers each with one JSON line; it ends with its stdin.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import xllamacpp

from benchmarks.measure import together
from benchmarks.streams import GAP, Stream
from llamastead_server.domain.gguf_header import read_header
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
        self._lock = threading.Lock()

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

    def complete(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        """Runs one completion per prompt, one begun shortly after the other, and returns when all have ended."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"prompts": list(prompts), "tokens": tokens}) + "\n")
            self._process.stdin.flush()
            return [Stream(**stream) for stream in self._read()]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)["answer"]
        raise RuntimeError(f"the raw engine ended with status {self._process.wait()}")


def _complete(server: Any, prompt: str, tokens: int) -> Stream:
    times: list[float] = []
    last: dict[str, Any] = {}

    def hear(event: Any) -> bool:
        if any(choice["text"] for choice in event.get("choices", ())):
            times.append(time.perf_counter())
        last.update(event)
        return False

    started = time.perf_counter()
    server.handle_completions({**_GREEDY, "prompt": prompt, "max_tokens": tokens}, hear)
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
        for line in sys.stdin:
            asked = json.loads(line)
            prompts, tokens = asked["prompts"], asked["tokens"]

            def run(index: int, prompts: Sequence[str] = prompts, tokens: int = tokens) -> Stream:
                return _complete(server, prompts[index], tokens)

            streams = together(len(prompts), run, gap=GAP)
            print(json.dumps({"answer": [stream.plain() for stream in streams]}), flush=True)


if __name__ == "__main__":
    main()
