"""Streamed completions on a GPU: the raw generator, the engine worker, gRPC and REST, in one run.

`python -m benchmarks.gpu [--quick] [--model 1b|8b] [--bits 4]`; `make bench-gpu` runs it. Both models have random
weights. The raw generator and the server's worker share the GPU, and the ways take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import grpc

from benchmarks import random_hf_llama, ways
from benchmarks.measure import Result, Table, Target, differences, interleaved, ratios, spread
from benchmarks.random_llama import prompt
from benchmarks.raw_exllama import RawExllama
from benchmarks.stack import running_stack
from benchmarks.streams import Stream, burst, rate
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import exllama_build

STREAMS = (1, 4, 16, 64)
LEAST_RATIO = 0.97
MOST_ADDED_MS = 15.0
_WINDOW = 1024
_PROMPT_WORDS = 128
_PROJECT = "gpu"
_RAW, _WORKER, _GRPC, _REST = "generator", "engine worker", "gRPC", "REST"
_RESULTS = Path("bench-results")
_EXTENSIONS = Path("build/cuda-extensions").absolute()

Burst = Callable[[Sequence[str], int], list[Stream]]


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", choices=sorted(random_hf_llama.SHAPES), action="append")
    parser.add_argument("--bits", type=float, help="convert to EXL2 of so many bits first")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast")
    given = parser.parse_args()
    _RESULTS.mkdir(exist_ok=True)
    exllama_build.load_extension(_EXTENSIONS, lambda share, step: print(f"{share:4.0%} {step}", flush=True))
    folder = Path(tempfile.gettempdir()) / "llamastead-bench" / "gpu-models"
    for name in given.model or ["1b", "8b"]:
        model = random_hf_llama.make(folder, random_hf_llama.SHAPES[name])
        if given.bits is not None:
            model = _converted(model, given.bits)
        result = run(model, given.quick)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        (_RESULTS / f"{stamp}-{model.name}.json").write_text(json.dumps(result.plain(), indent=1))
        (_RESULTS / f"{stamp}-{model.name}.md").write_text(f"{result.markdown()}\n\n{_device()}\n")
        print(f"{result.markdown()}\n\n{_device()}\n", flush=True)


def run(model: Path, quick: bool) -> Result:
    """Measures 1, 4, 16 and 64 streams on one model."""
    rounds, tokens = (2, 32) if quick else (8, 128)
    with _ways(model) as available:
        samples = {count: _measure(available, count, rounds, tokens) for count in STREAMS}
    done = {(s.prompt_tokens, s.tokens) for taken in samples.values() for way in taken.values() for b in way for s in b}
    if len(done) != 1:
        raise RuntimeError(f"the ways did not do the same work, in (prompt, answer) tokens: {done}")
    return _result(samples, model.name, tokens)


@contextlib.contextmanager
def _ways(model: Path) -> Iterator[Mapping[str, Burst]]:
    slots = max(STREAMS)
    # Both engines are on the GPU at once, so that the rounds can take turns: each gets a fixed cache.
    settings = GpuSettings(context_length=_WINDOW, slots=slots, cache_tokens=slots * 512)
    (model / "llamastead.yaml").write_text(f"cache_tokens: {settings.cache_tokens}\n")
    environment = {
        "LLAMASTEAD_MODELS_DIR": str(model.parent),
        "LLAMASTEAD_DEFAULT_MODEL": model.name,
        "LLAMASTEAD_CONTEXT_LENGTH": str(_WINDOW),
        "LLAMASTEAD_GPU_SLOTS": str(slots),
    }
    with contextlib.ExitStack() as exits:
        raw = exits.enter_context(RawExllama(model, settings, _EXTENSIONS))
        stack = exits.enter_context(running_stack(environment))
        path = stack.make_project(_PROJECT)
        config = stack.ask("GET", path)["project"]["config"]
        config |= {"runtime": {"provider": "llamastead", "model": model.name}, "prompts": []}
        stack.ask("PUT", path, {"config": config})
        worker, bare = (
            exits.enter_context(grpc.insecure_channel(address))
            for address in (stack.processes()["engine worker"].socket, stack.bare_grpc)
        )
        completes = {
            _WORKER: ways.worker(worker),
            _GRPC: ways.typed(bare, _PROJECT),
            _REST: ways.rest(stack.port, _PROJECT),
        }

        def through(name: str) -> Burst:
            return lambda prompts, tokens: burst(completes[name], prompts, tokens)

        yield {_RAW: raw.burst, **{name: through(name) for name in completes}}


def _measure(available: Mapping[str, Burst], count: int, rounds: int, tokens: int) -> dict[str, list[list[Stream]]]:
    def sampler(name: str) -> Callable[[int], list[Stream]]:
        def sample(number: int) -> list[Stream]:
            # No two begin alike, so that no prompt is found in the engine's cache.
            prompts = [prompt(f"{name} {count} {number} {index}", _PROMPT_WORDS) for index in range(count)]
            return available[name](prompts, tokens)

        return sample

    return interleaved({name: sampler(name) for name in available}, rounds)


def _result(samples: Mapping[int, Mapping[str, Sequence[Sequence[Stream]]]], model: str, tokens: int) -> Result:
    rows: list[list[str]] = []
    targets: list[Target] = []
    plain: dict[str, dict[str, list[dict[str, float]]]] = {}
    for count, taken in samples.items():
        rates = {name: [rate(streams) for streams in way] for name, way in taken.items()}
        firsts = {
            name: [statistics.fmean(stream.first_text for stream in streams) * 1e3 for streams in way]
            for name, way in taken.items()
        }
        plain[str(count)] = {
            name: [
                {"tokens_per_second": r, "first_token_ms": f} for r, f in zip(rates[name], firsts[name], strict=True)
            ]
            for name in taken
        }
        for name in taken:
            ratio, added = ratios(rates[name], rates[_RAW]), differences(firsts[name], firsts[_RAW])
            cells = [f"{spread(rates[name]).median:.0f}", ratio.text(".3f")]
            rows.append([str(count), name, *cells, f"{spread(firsts[name]).median:.1f}", added.text(".1f")])
            if name in (_GRPC, _REST):
                label = f"{name}, {count} stream{'s' if count > 1 else ''}"
                targets.append(Target(f"tokens/s over the generator's, {label}", ratio.median, LEAST_RATIO, True))
                targets.append(Target(f"added time to first token, {label}", added.median, MOST_ADDED_MS, False, " ms"))
    title = f"{model}, prompts of {_PROMPT_WORDS} words, answers of {tokens} tokens"
    columns = ["streams", "way", "tokens/s", "over the generator's", "first token, ms", "added, ms"]
    return Result(model, [Table(title, columns, rows)], targets, plain)


def _converted(model: Path, bits: float) -> Path:
    """The model's EXL2 form beside it, made once; calibrated on little, which speed does not depend on."""
    target = model.with_name(f"{model.name}-exl2-{bits:g}")
    if not (target / "config.json").exists():
        with tempfile.TemporaryDirectory() as work:
            command = [
                sys.executable, "-m", "exllamav2.conversion.convert_exl2", "-i", str(model), "-o", work, "-nr",
                "-cf", str(target), "-b", str(bits), "-hb", "6", "-r", "4", "-l", "512", "-mr", "2", "-ml", "512",
            ]  # fmt: skip
            place = _EXTENSIONS / exllama_build.fingerprint()
            subprocess.run(command, check=True, env={**os.environ, "TORCH_EXTENSIONS_DIR": str(place)})
    return target


def _device() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return f"On {subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()}."


if __name__ == "__main__":
    main()
