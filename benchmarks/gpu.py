"""Streamed completions on a GPU: the raw generator, the engine worker, gRPC and REST, in one run.

`python -m benchmarks.gpu [--quick] [--model 1b|8b] [--bits 4]`; `make bench-gpu` runs it. Both models have random
weights. The raw generator and the server's worker share the GPU, and the ways take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import grpc

from benchmarks import exl2, random_embedder, random_hf_llama, ways
from benchmarks.measure import Result, Table, Target, differences, interleaved, ratios, spread
from benchmarks.random_llama import prompt
from benchmarks.raw_exllama import RawExllama
from benchmarks.stack import running_stack
from benchmarks.streams import Complete, Stream, burst, rate
from llamastead.internal.v1 import engine_pb2, engine_pb2_grpc
from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import exllama_build

STREAMS = (1, 4, 16, 64)
LEAST_RATIO = 0.97
MOST_ADDED_MS = 15.0
_SETTINGS = GpuSettings(context_length=1024, slots=max(STREAMS), cache_tokens=max(STREAMS) * 512)
_PROMPT_WORDS = 128
_PROJECT = "gpu"
_RAW, _WORKER, _GRPC, _REST = "generator", "engine worker", "gRPC", "REST"
_EXTENSIONS = Path("build/cuda-extensions").absolute()

Burst = Callable[[Sequence[str], int], list[Stream]]


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", choices=sorted(random_hf_llama.SHAPES), action="append")
    parser.add_argument("--bits", type=float, help="convert to EXL2 of so many bits first")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast")
    parser.add_argument("--bare", action="store_true", help="the generator and the engine worker only: needs no server")
    parser.add_argument("--results", type=Path, default=Path("bench-results"), help="folder of the results")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    exllama_build.load_extension(_EXTENSIONS, lambda share, step: print(f"{share:4.0%} {step}", flush=True))
    folder = Path(tempfile.gettempdir()) / "llamastead-bench" / "gpu-models"
    for name in given.model or ["1b", "8b"]:
        model = random_hf_llama.make(folder, random_hf_llama.SHAPES[name])
        if given.bits is not None:
            model = _converted(model, given.bits)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        run(model, given.quick, given.bare, given.results / f"{stamp}-{model.name}")


def run(model: Path, quick: bool, bare: bool, results: Path) -> Result:
    """Measures 1, 4, 16 and 64 streams on one model; writes what it has after each, for a run that is cut off."""
    rounds, tokens = (2, 32) if quick else (8, 128)
    samples: dict[int, Mapping[str, Sequence[Sequence[Stream]]]] = {}
    with _bare_ways(model) if bare else _ways(model) as available:
        for count in STREAMS:
            samples[count] = _measure(available, count, rounds, tokens)
            result = _result(samples, model.name, tokens)
            results.with_suffix(".json").write_text(json.dumps(result.plain(), indent=1))
            results.with_suffix(".md").write_text(f"{result.markdown()}\n\n{_device()}\n")
            print(f"{result.markdown()}\n\n{_device()}\n", flush=True)
    done = {(s.prompt_tokens, s.tokens) for taken in samples.values() for way in taken.values() for b in way for s in b}
    if len(done) != 1:
        raise RuntimeError(f"the ways did not do the same work, in (prompt, answer) tokens: {done}")
    return result


@contextlib.contextmanager
def _ways(model: Path) -> Iterator[Mapping[str, Burst]]:
    # Both engines are on the GPU at once, so that the rounds can take turns: each gets a fixed cache.
    own = f"cache_tokens: {_SETTINGS.cache_tokens}\nmargin: {_SETTINGS.margin}\n"
    (model / "llamastead.yaml").write_text(own)
    with contextlib.ExitStack() as exits:
        raw = exits.enter_context(RawExllama(model, _SETTINGS, _EXTENSIONS))
        data = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        # The server would compile the kernels once more.
        (data / "cuda-extensions").symlink_to(_EXTENSIONS)
        environment = {
            "LLAMASTEAD_DATA_DIR": str(data),
            # The one on board is as large as all else that such a machine lacks.
            "LLAMASTEAD_EMBEDDING_MODEL": str(random_embedder.make(model.parent.with_name("embedder"))),
            "LLAMASTEAD_MODELS_DIR": str(model.parent),
            "LLAMASTEAD_DEFAULT_MODEL": model.name,
            "LLAMASTEAD_CONTEXT_LENGTH": str(_SETTINGS.context_length),
            "LLAMASTEAD_GPU_SLOTS": str(_SETTINGS.slots),
        }
        stack = exits.enter_context(running_stack(environment))
        path = stack.make_project(_PROJECT)
        config = stack.ask("GET", path)["project"]["config"]
        config |= {"runtime": {"provider": "llamastead", "model": model.name}, "prompts": []}
        stack.ask("PUT", path, {"config": config})
        rest = ways.rest(stack.port, _PROJECT)
        # Returns when the model is loaded.
        burst(rest, ["a"], 1)
        worker, bare = (
            exits.enter_context(grpc.insecure_channel(address))
            for address in (stack.processes()["engine worker"].socket, stack.bare_grpc)
        )
        yield _named(raw, {_WORKER: ways.worker(worker), _GRPC: ways.typed(bare, _PROJECT), _REST: rest})


@contextlib.contextmanager
def _bare_ways(model: Path) -> Iterator[Mapping[str, Burst]]:
    with contextlib.ExitStack() as exits:
        raw = exits.enter_context(RawExllama(model, _SETTINGS, _EXTENSIONS))
        socket = Path(exits.enter_context(tempfile.TemporaryDirectory())) / "worker.sock"
        command = [
            sys.executable, "-m", "llamastead_server.workers.engine", "--engine", "exllamav2", "--socket", str(socket),
            "--model", str(model), "--settings", _SETTINGS.model_dump_json(), "--extensions", str(_EXTENSIONS),
        ]  # fmt: skip
        # It ends with its stdin.
        exits.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
        worker = exits.enter_context(grpc.insecure_channel(f"unix:{socket}"))
        grpc.channel_ready_future(worker).result(60)
        status = engine_pb2.GetStatusResponse(state="loading")
        while status.state == "loading":
            time.sleep(0.2)
            status = engine_pb2_grpc.EngineServiceStub(worker).GetStatus(engine_pb2.GetStatusRequest(), timeout=30)
        if status.state != "ready":
            raise RuntimeError(f"the engine worker failed: {status.error}")
        yield _named(raw, {_WORKER: ways.worker(worker)})


def _named(raw: RawExllama, completes: Mapping[str, Complete]) -> Mapping[str, Burst]:
    def through(name: str) -> Burst:
        return lambda prompts, tokens: burst(completes[name], prompts, tokens)

    return {_RAW: raw.burst, **{name: through(name) for name in completes}}


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
    """The model's EXL2 form beside it, made once."""
    target = model.with_name(f"{model.name}-exl2-{bits:g}")
    if not (target / "config.json").exists():
        print(f"converting {model.name} to {bits:g} bits", flush=True)
        try:
            exl2.convert(model, target, bits, _EXTENSIONS)
        except subprocess.CalledProcessError as error:
            sys.exit(f"the conversion failed: {error.stdout[-4000:]}")
    return target


def _device() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return f"On {subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()}."


if __name__ == "__main__":
    main()
