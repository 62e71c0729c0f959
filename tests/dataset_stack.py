"""Everything datasets need, from real parts, over one data folder; also a program that tests kill.

`python -m tests.dataset_stack FOLDER` processes the dataset `my-org/shop/papers` and prints each step.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamastead_server.adapters.blob_store import FileBlobStore
from llamastead_server.adapters.chunk_store import SqlChunkStore
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.database_contents import SqlDatabaseContents
from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.file_store import SqlFileStore
from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.adapters.task_store import SqlTaskStore
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.datasets.actions import DatasetActions
from llamastead_server.domain.datasets.datasets import Datasets
from llamastead_server.domain.datasets.file_removal import FileRemoval
from llamastead_server.domain.datasets.files import DatasetLocks
from llamastead_server.domain.datasets.ingestion import PROCESS_DATASET, Ingestion
from llamastead_server.domain.datasets.previews import Previews
from llamastead_server.domain.datasets.reindexing import REINDEX_DATABASE, Reindexing
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Clock, Collection, DocumentReader, Embedder
from llamastead_server.domain.retrieval.databases import Databases
from llamastead_server.domain.tasks.tasks import TaskRules, TaskRunner

REF = ProjectRef("my-org", "shop")
DATASET = "papers"
MODEL = "all-MiniLM-L6-v2"


@dataclass
class Stack:
    """The parts, joined as the server joins them."""

    folder: Path
    projects: ProjectFiles
    files: SqlFileStore
    chunks: SqlChunkStore
    blobs: FileBlobStore
    vectors: MilvusStore
    embedder: Embedder
    datasets: Datasets
    actions: DatasetActions
    ingestion: Ingestion
    tasks: TaskRunner
    databases: Databases
    reindexing: Reindexing
    previews: Previews

    async def make_project(self, ref: ProjectRef = REF, **parser: object) -> None:
        """A project with the databases main_db and other_db and an empty dataset."""
        strategy = {"name": "universal_processor", "parsers": [{"type": "auto", "config": parser}]}
        await self.projects.create(
            ref,
            ProjectConfig.parse(
                {
                    "name": ref.name,
                    "namespace": ref.namespace,
                    "runtime": {"model": "tiny"},
                    "rag": {
                        "databases": [{"name": "main_db"}, {"name": "other_db"}],
                        "data_processing_strategies": [strategy],
                    },
                }
            ),
        )
        await self.datasets.create(ref, DATASET)

    async def add(self, name: str, content: bytes | str, dataset: str = DATASET, ref: ProjectRef = REF) -> str:
        """Adds a file and returns its hash."""
        data = content if isinstance(content, bytes) else content.encode()
        return (await self.datasets.add_file(ref, dataset, name, None, pieces_of(data))).record.hash

    async def found(self, words: str, database: str = "main_db", ref: ProjectRef = REF) -> Sequence[str]:
        """Texts of the chunks that a keyword search finds; a hit without its text counts as an orphan."""
        collection = Collection(ref, database, await self.embedder.dimension())
        hits = await self.vectors.search_keyword(collection, words, 10, {})
        texts = await self.chunks.get_chunks(ref, [hit.chunk_id for hit in hits])
        return [texts[hit.chunk_id].text if hit.chunk_id in texts else "an orphan" for hit in hits]

    async def left(self, ref: ProjectRef = REF) -> tuple[int, int, int]:
        """Vectors, file records and blobs of a project."""
        blobs = [path for path in (self.folder / "projects").glob(f"{ref}/lf_data/*/**/*") if path.is_file()]
        vectors = [await self.vectors.count(ref, name) for name in ("main_db", "other_db")]
        return sum(vectors), len(await self.files.list_files(ref)), len(blobs)


async def pieces_of(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    """A body that arrives in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@asynccontextmanager
async def stack(
    folder: Path,
    embedder: Embedder,
    *,
    reader: DocumentReader | None = None,
    max_bytes: int = 1 << 30,
    rules: TaskRules | None = None,
    clock: Clock = time.time,
) -> AsyncIterator[Stack]:
    """Opens the parts over a data folder, reconciled, with the task runner not yet started."""
    async with (
        Database.in_folder(folder) as database,
        MilvusStore.embedded(folder / "milvus") as vectors,
        KreuzbergReader(timeout=60) as real_reader,
    ):
        projects = ProjectFiles(folder / "projects")
        files, chunks, locks = SqlFileStore(database), SqlChunkStore(database), DatasetLocks()
        blobs = FileBlobStore(folder / "projects", max_bytes=max_bytes)
        datasets = Datasets(projects, files, chunks, blobs, vectors, locks, clock)
        actions = DatasetActions(projects, files, FileRemoval(files, chunks, blobs, vectors, locks), locks)
        ingestion = Ingestion(
            projects, files, chunks, blobs, vectors, embedder, reader or real_reader, locks, clock=clock
        )
        databases = Databases(projects, chunks, SqlDatabaseContents(database), vectors, embedder, locks)
        reindexing = Reindexing(projects, chunks, vectors, embedder, locks, clock)
        previews = Previews(projects, files, blobs, reader or real_reader)
        tasks = TaskRunner(
            SqlTaskStore(database),
            {PROCESS_DATASET: ingestion.run_task, REINDEX_DATABASE: reindexing.run_task},
            time.time,
            alone=True,
            rules=rules,
        )
        await datasets.reconcile()
        try:
            yield Stack(
                folder, projects, files, chunks, blobs, vectors, embedder, datasets, actions, ingestion, tasks,
                databases, reindexing, previews,
            )  # fmt: skip
        finally:
            await tasks.stop()


class _Printed:
    """Progress as lines on stdout."""

    async def report(
        self, current: int, total: int, message: str = "", files: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Prints files done and chunks made."""
        print(current, sum(file["chunks"] for file in files), flush=True)


async def main() -> None:
    """Processes the dataset; killed in the middle of it."""
    folder = Path(sys.argv[1])
    async with WorkerEmbedder(MODEL) as embedder, stack(folder, embedder) as parts:
        if sys.argv[2:] == ["--task"]:
            task = await parts.tasks.submit(REF, PROCESS_DATASET, {"dataset": DATASET})
            print(task.id, flush=True)
            await parts.tasks.start()
            async for state in parts.tasks.watch(REF, task.id, every=0.02):
                print(state.meta.get("current", 0), sum(f["chunks"] for f in state.meta.get("files", ())), flush=True)
        else:
            await parts.ingestion.run_task(REF, {"dataset": DATASET}, _Printed())
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
