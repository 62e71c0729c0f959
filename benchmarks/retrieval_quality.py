"""Retrieval quality on SciFact: nDCG@10 of each strategy, through the server's own parts.

`python -m benchmarks.retrieval_quality FOLDER`, where FOLDER holds BEIR's `corpus.jsonl`, `queries.jsonl` and
`qrels/test.tsv`. Exits with 1 if a strategy is below its gate.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamastead_server.adapters.chunk_store import SqlChunkStore
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.files import FileRecord
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk, Collection
from llamastead_server.domain.retrieval.plan import RetrievalQuery
from llamastead_server.domain.retrieval.retriever import Retriever

REF = ProjectRef("benchmark", "scifact")
DATABASE = "main_db"
MODEL = "all-MiniLM-L6-v2"
TOP_K = 10
CONCURRENCY = 4
GATES = {"vector": 0.640, "keyword": 0.680, "hybrid": 0.725}
RUNS = (("vector", False), ("keyword", False), ("hybrid", False), ("keyword", True), ("hybrid", True))


def read_lines(path: Path) -> Sequence[dict[str, str]]:
    with path.open() as lines:
        return [json.loads(line) for line in lines]


def read_judgments(path: Path) -> Mapping[str, Mapping[str, int]]:
    judgments: dict[str, dict[str, int]] = defaultdict(dict)
    with path.open() as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            judgments[row["query-id"]][row["corpus-id"]] = int(row["score"])
    return judgments


def ndcg(found: Sequence[str], judged: Mapping[str, int]) -> float:
    """Normalised discounted cumulative gain of the first ten."""
    gain = sum(judged.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(found[:TOP_K]))
    best = sorted(judged.values(), reverse=True)[:TOP_K]
    return gain / sum(value / math.log2(rank + 2) for rank, value in enumerate(best))


async def index(corpus: Sequence[dict[str, str]], embedder: WorkerEmbedder, store: MilvusStore, chunks: SqlChunkStore,
                projects: ProjectFiles) -> None:  # fmt: skip
    config = {"name": REF.name, "namespace": REF.namespace, "runtime": {"model": "none"}}
    await projects.create(REF, ProjectConfig.parse({**config, "rag": {"databases": [{"name": DATABASE}]}}))
    dimension = await embedder.dimension()
    await chunks.remember_embedding(REF, DATABASE, MODEL, dimension)
    made = [
        Chunk(id=document["_id"], dataset="corpus", file_hash="0" * 64, filename="corpus.jsonl", ordinal=number,
              text=f"{document['title']} {document['text']}".strip())
        for number, document in enumerate(corpus)
    ]  # fmt: skip
    record = FileRecord(REF, "corpus", "0" * 64, "corpus.jsonl", "text/plain", 0, time.time(), "processed")
    await chunks.complete(DATABASE, record, made)
    collection = Collection(REF, DATABASE, dimension)
    await store.create(collection)
    for start in range(0, len(made), 256):
        part = made[start : start + 256]
        await store.upsert(collection, part, await embedder.embed_passages([chunk.text for chunk in part]))


async def measure(
    retriever: Retriever, queries: Mapping[str, str], judgments: Mapping[str, Mapping[str, int]], strategy: str,
    expand: bool,
) -> tuple[float, float]:  # fmt: skip
    """Mean nDCG@10 and median seconds of a query."""
    gate = asyncio.Semaphore(CONCURRENCY)
    seconds: list[float] = []

    async def score(query_id: str, judged: Mapping[str, int]) -> float:
        async with gate:
            query = RetrievalQuery(queries[query_id], top_k=TOP_K, retrieval_strategy=strategy, query_expansion=expand)
            result = await retriever.query(REF, query)
            seconds.append(result.seconds)
            return ndcg([hit.chunk.id for hit in result.hits], judged)

    scores = await asyncio.gather(*(score(query_id, judged) for query_id, judged in judgments.items()))
    return statistics.fmean(scores), statistics.median(seconds)


async def run(folder: Path, limit: int | None) -> int:
    corpus = read_lines(folder / "corpus.jsonl")[:limit]
    queries = {query["_id"]: query["text"] for query in read_lines(folder / "queries.jsonl")}
    judgments = read_judgments(folder / "qrels" / "test.tsv")
    failed = 0
    with tempfile.TemporaryDirectory() as data:
        async with (
            Database.in_folder(Path(data)) as database,
            MilvusStore.embedded(Path(data)) as store,
            WorkerEmbedder(MODEL) as embedder,
        ):
            chunks, projects = SqlChunkStore(database), ProjectFiles(Path(data) / "projects")
            started = time.perf_counter()
            await index(corpus, embedder, store, chunks, projects)
            elapsed = time.perf_counter() - started
            print(f"indexed {len(corpus)} documents in {elapsed:.0f} s ({len(corpus) / elapsed:.0f}/s)")
            retriever = Retriever(projects, embedder, store, chunks)
            print("| strategy | nDCG@10 | gate | median ms |\n|---|---|---|---|")
            for strategy, expand in RUNS:
                quality, median = await measure(retriever, queries, judgments, strategy, expand)
                gate = None if expand else GATES[strategy]
                failed += gate is not None and quality < gate
                name = f"{strategy} + query_expansion" if expand else strategy
                print(f"| {name} | {quality:.4f} | {'' if gate is None else gate} | {median * 1000:.1f} |", flush=True)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="nDCG@10 on SciFact.")
    parser.add_argument("folder", type=Path, help="folder of corpus.jsonl, queries.jsonl and qrels/test.tsv")
    parser.add_argument("--limit", type=int, help="documents to index, for a quick look; default: all")
    arguments = parser.parse_args()
    return asyncio.run(run(arguments.folder, arguments.limit))


if __name__ == "__main__":
    sys.exit(main())
