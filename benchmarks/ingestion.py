"""Chunks per second of uploading and processing files, beside embedding alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.corpus import chunks_of, files
from benchmarks.datasets import ingest
from benchmarks.measure import Result, Table, interleaved, ratios, spread, together
from benchmarks.raw_retrieval import RawEmbedder, raw_embedder
from benchmarks.stack import running_stack

_FILES = 8
_BATCH = 64
_IN_FLIGHT = 2
"""Batches the embedder has at a time, so that it never waits for the next one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Chunks per second, and the part of the time that uploading took."""

    rate: float
    upload_share: float = 0.0


def run(quick: bool) -> Result:
    """Measures plain text files; parsing them costs next to nothing, so embedding is what there is to lose to."""
    rounds, size = (2, 200) if quick else (5, 600)
    with running_stack() as stack, raw_embedder(stack) as embedder:
        project = stack.make_project("ingestion", "rag")

        def server(number: int) -> Sample:
            name = f"set-{number + 100}"
            done = ingest(stack, project, name, files(name, _FILES, size))
            seconds = done.upload_seconds + done.process_seconds
            return Sample(done.chunks / seconds, done.upload_seconds / seconds)

        def raw(number: int) -> Sample:
            texts = [
                chunk for document in files(f"raw-{number}", _FILES, size).values() for chunk in chunks_of(document)
            ]
            return Sample(_embedding_rate(embedder, texts))

        samples = interleaved({"embedding alone": raw, "upload and process": server}, rounds)
    rates = {name: [sample.rate for sample in taken] for name, taken in samples.items()}
    shares = [sample.upload_share for sample in samples["upload and process"]]
    rows = [
        [name, f"{spread(taken).median:.1f}", ratios(taken, rates["embedding alone"]).text()]
        for name, taken in rates.items()
    ]
    title = f"{_FILES} text files of {size} chunks together; uploading took {spread(shares).median:.1%} of the time"
    return Result("ingestion", [Table(title, ["path", "chunks/s", "ratio to embedding"], rows)], samples=rates)


def _embedding_rate(embedder: RawEmbedder, texts: Sequence[str]) -> float:
    batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]

    def work(index: int) -> None:
        for batch in batches[index::_IN_FLIGHT]:
            embedder.embed(batch, query=False)

    started = time.perf_counter()
    together(_IN_FLIGHT, work)
    return len(texts) / (time.perf_counter() - started)
