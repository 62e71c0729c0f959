"""ExLlamaV2's generator with nothing around it, in a process of its own: what the server is measured against.

The model is loaded exactly as the engine worker loads it. The process reads rounds as JSON lines from stdin and answers
each with one JSON line; it ends with its stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.streams import Stream
from llamastead_server.domain.models.generation import Message
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers.exllama_loading import Loaded, Source, load


class RawExllama:
    """The raw generator, seen from the benchmark's process; use it as a context manager."""

    def __init__(self, folder: Path, settings: GpuSettings, extensions: Path) -> None:
        arguments = [str(folder), settings.model_dump_json(), str(extensions)]
        command = [sys.executable, "-m", "benchmarks.raw_exllama", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def burst(self, prompts: Sequence[str], tokens: int) -> list[Stream]:
        """Streams one completion per prompt, all begun at the same time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": list(prompts), "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return [Stream(**stream) for stream in self._read()]

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)["answer"]
        raise RuntimeError(f"the raw generator ended with status {self._process.wait()}")


def _burst(generator: Any, loaded: Loaded, prompts: Sequence[str], tokens: int) -> list[Stream]:
    import torch
    from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler

    started = time.perf_counter()
    times: dict[int, list[float]] = {}
    counts: dict[int, tuple[int, int]] = {}
    for index, prompt in enumerate(prompts):
        ids = asyncio.run(loaded.tokenizer.encode_conversation([Message("user", prompt)]))
        job = ExLlamaV2DynamicJob(
            input_ids=torch.tensor([ids]),
            max_new_tokens=tokens,
            gen_settings=ExLlamaV2Sampler.Settings.greedy(),
            stop_conditions=loaded.ends,
            identifier=index,
        )
        generator.enqueue(job)
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if result["stage"] != "streaming":
                continue
            if result.get("text"):
                times.setdefault(result["identifier"], []).append(time.perf_counter())
            if result["eos"]:
                counts[result["identifier"]] = result["prompt_tokens"], result["new_tokens"]
    return [
        Stream(started, times[index][0], times[index][-1], *counts[index], len(times[index]))
        for index in range(len(prompts))
    ]


def main() -> None:
    """Loads the model and serves rounds until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", type=GpuSettings.model_validate_json)
    parser.add_argument("extensions", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as private:
        source = Source(given.folder, None, given.extensions, Path(private))
        loaded = load(source, given.settings, lambda share, step: None)
        generator = loaded.make_generator()
        print(json.dumps({"answer": "ready"}), flush=True)
        for line in sys.stdin:
            streams = _burst(generator, loaded, **json.loads(line))
            print(json.dumps({"answer": [stream.plain() for stream in streams]}), flush=True)


if __name__ == "__main__":
    main()
