"""The vector store on Milvus: the embedded one, or a cluster by URI."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from llamastead_server.adapters import milvus_schema
from llamastead_server.adapters.milvus_connection import CALL_SECONDS, MilvusConnection, timed_out
from llamastead_server.adapters.milvus_filter import encode, render
from llamastead_server.adapters.milvus_lite import MilvusLite
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.named_locks import NamedLocks
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk, Collection, Match

T = TypeVar("T")
_UPSERT_ROWS = 256
_LONGEST_QUERY = 4096
_LARGEST_LIMIT = 16_384
_WRITE_SECONDS = 120.0
_ROW_OVERHEAD_BYTES = 1500
_COUNT_SECONDS = 10.0
_SEARCH_FAILED = 2000


class MilvusStore:
    """Vectors and a BM25 index over the same chunks, one Milvus collection per project database.

    Every call has a time limit: without one pymilvus retries a dead server 75 times.

    Args:
        lite: The embedded server to start, or `None` for a cluster.
        uri: Address of the cluster when there is no embedded server.
        token: Token of the cluster.
    """

    def __init__(self, lite: MilvusLite | None, *, uri: str = "", token: str = "") -> None:
        self._lite = lite
        self._connection = MilvusConnection(lite, uri=uri, token=token)
        self._writes = NamedLocks()
        self._counted = (-math.inf, 0)

    @classmethod
    def embedded(cls, folder: Path) -> MilvusStore:
        """A store in a data folder, served by Milvus Lite."""
        return cls(MilvusLite(folder))

    @classmethod
    def cluster(cls, uri: str, token: str | None = None) -> MilvusStore:
        """A store in a Milvus cluster. Written by its documentation: in the tests the embedded server stands for it."""
        return cls(None, uri=uri, token=token or "")

    async def __aenter__(self) -> MilvusStore:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def create(self, collection: Collection) -> None:
        """Makes the collection unless it exists."""
        if collection.metric != "cosine":
            raise InvalidRequest(f"distance_metric {collection.metric!r} is not available: vectors are compared by "
                                 "cosine.")  # fmt: skip
        name = milvus_schema.collection_name(collection.project, collection.database)
        await self._write(name, lambda client: self._create(client, name, collection))

    async def drop(self, project: ProjectRef, database: str | None = None) -> None:
        """Removes one collection, or all of a project's."""
        if database is not None:
            await self._drop(milvus_schema.collection_name(project, database))
            return
        prefix = milvus_schema.project_prefix(project)
        names = await self._read(lambda client: client.list_collections(timeout=CALL_SECONDS))
        for name in names:
            if name.startswith(prefix):
                await self._drop(name)

    async def upsert(self, collection: Collection, chunks: Sequence[Chunk], vectors: Sequence[Sequence[float]]) -> None:
        """Writes chunks with their vectors; a chunk of the same id is replaced. The next search finds them."""
        if len(chunks) != len(vectors):
            raise ValueError(f"{len(chunks)} chunks but {len(vectors)} vectors")
        name = milvus_schema.collection_name(collection.project, collection.database)
        for start in range(0, len(chunks), _UPSERT_ROWS):
            end = start + _UPSERT_ROWS
            rows = [
                milvus_schema.row(chunk, vector)
                for chunk, vector in zip(chunks[start:end], vectors[start:end], strict=True)
            ]
            await self._write(name, lambda client, rows=rows: client.upsert(name, rows, timeout=CALL_SECONDS))  # type: ignore[misc]

    async def delete_file(self, project: ProjectRef, database: str, dataset: str, file_hash: str | None) -> None:
        """Removes a file's chunks, or with `None` the whole dataset's."""
        name = milvus_schema.collection_name(project, database)
        condition = f'dataset == "{encode(dataset)}"'
        if file_hash is not None:
            condition += f' and file_hash == "{encode(file_hash)}"'
        await self._write(
            name, lambda client: client.delete(name, filter=condition, timeout=_WRITE_SECONDS), missing=None
        )

    async def search_vector(
        self,
        collection: Collection,
        vector: Sequence[float],
        limit: int,
        filters: Mapping[str, Any],
        *,
        without: Iterable[str] = (),
    ) -> Sequence[Match]:
        """The chunks nearest to the vector, best first, scored by cosine; none of the datasets `without`."""
        return await self._search(
            collection, milvus_schema.as_vector(vector), "vector", "COSINE", limit, render(filters, without)
        )

    async def search_keyword(
        self,
        collection: Collection,
        query: str,
        limit: int,
        filters: Mapping[str, Any],
        *,
        without: Iterable[str] = (),
    ) -> Sequence[Match]:
        """The chunks that share words with the query, best first, scored by BM25; none of the datasets `without`."""
        words = milvus_schema.searchable(query[:_LONGEST_QUERY])
        return await self._search(collection, words, "sparse", "BM25", limit, render(filters, without))

    async def vector_scores(
        self, collection: Collection, vector: Sequence[float], chunk_ids: Sequence[str]
    ) -> Mapping[str, float]:
        """Cosine of the query vector with each given chunk's vector; unknown ids are absent."""
        if not chunk_ids:
            return {}
        condition = f"id in [{', '.join(milvus_schema.id_literal(chunk_id) for chunk_id in chunk_ids)}]"
        matches = await self._search(
            collection, milvus_schema.as_vector(vector), "vector", "COSINE", len(chunk_ids), condition
        )
        return {match.chunk_id: match.score for match in matches}

    async def count(self, project: ProjectRef, database: str) -> int:
        """Chunks in the collection; 0 when there is none."""
        name = milvus_schema.collection_name(project, database)
        return await self._read(lambda client: _count(client, name), missing=0)

    async def size_bytes(self, project: ProjectRef, database: str) -> int:
        """Estimated bytes on disk: the collection's share, by chunks, of the one file of an embedded store;
        by the size of its vectors and a typical chunk on a cluster, which does not tell."""  # fmt: skip
        name = milvus_schema.collection_name(project, database)
        return await self._read(lambda client: self._size(client, name), missing=0)

    async def _search(
        self, collection: Collection, data: Any, field: str, metric: str, limit: int, condition: str
    ) -> Sequence[Match]:
        name = milvus_schema.collection_name(collection.project, collection.database)

        def found(client: Any) -> Any:
            return client.search(
                name, data=[data], anns_field=field, filter=condition, limit=max(1, min(limit, _LARGEST_LIMIT)),
                search_params={"metric_type": metric, "params": {}}, timeout=CALL_SECONDS,
            )[0]  # fmt: skip

        def search(client: Any) -> list[Match]:
            self._load(client, name)
            try:
                hits = found(client)
            except Exception as error:
                if timed_out(error):
                    raise
                # BM25 divides by the number of chunks: Milvus fails on a collection that never held one.
                if not _count(client, name):
                    return []
                if getattr(error, "code", None) != _SEARCH_FAILED:
                    raise
                hits = found(client)  # The first chunks came in between, or it fails again.
            return [Match(hit["id"], float(hit["distance"])) for hit in hits]

        return await self._read(search, missing=[])

    async def _drop(self, name: str) -> None:
        def drop(client: Any) -> None:
            self._connection.loaded.discard(name)
            client.drop_collection(name, timeout=_WRITE_SECONDS)

        await self._write(name, drop, missing=None)

    def _create(self, client: Any, name: str, collection: Collection) -> None:
        if client.has_collection(name, timeout=CALL_SECONDS):
            if set(milvus_schema.INDEXED) <= set(client.list_indexes(name, timeout=CALL_SECONDS)):
                return
            # A kill came between collection and indexes: it holds nothing, and would answer no search for ever.
            client.drop_collection(name, timeout=_WRITE_SECONDS)
        description = f"{collection.project}/{collection.database}"
        schema = milvus_schema.schema(client, collection.dimension, description)
        try:
            client.create_collection(name, schema=schema, consistency_level="Strong", timeout=_WRITE_SECONDS)
            client.create_index(name, milvus_schema.indexes(client), sync=False, timeout=_WRITE_SECONDS)
            self._load(client, name)
        except BaseException:
            # A collection without its indexes would answer no search for ever.
            with contextlib.suppress(Exception):
                client.drop_collection(name, timeout=CALL_SECONDS)
            raise

    def _load(self, client: Any, name: str) -> None:
        if name not in self._connection.loaded:
            client.load_collection(name, timeout=_WRITE_SECONDS)
            self._connection.loaded.add(name)

    def _size(self, client: Any, name: str) -> int:
        rows = _count(client, name)
        if self._lite is None:
            fields = client.describe_collection(name, timeout=CALL_SECONDS)["fields"]
            dimension = next(field["params"]["dim"] for field in fields if field["name"] == "vector")
            return rows * (4 * int(dimension) + _ROW_OVERHEAD_BYTES)
        return round(self._lite.data_file.stat().st_size * rows / max(self._rows(client), rows, 1))

    def _rows(self, client: Any) -> int:
        """The rows of all collections, counted anew at most every few seconds: there may be many collections."""
        counted_at, rows = self._counted
        if time.monotonic() > counted_at + _COUNT_SECONDS:
            rows = sum(_count(client, name) for name in client.list_collections(timeout=CALL_SECONDS))
            self._counted = time.monotonic(), rows
        return rows

    async def _write(self, name: str, work: Callable[[Any], T], **missing: Any) -> T:
        """Runs `work` alone among the collection's writes, to its end even if the caller is cancelled."""

        async def alone() -> T:
            async with self._writes.held(name):
                return await self._read(work, **missing)

        return await asyncio.shield(alone())

    async def _read(self, work: Callable[[Any], T], **missing: Any) -> T:
        return await self._connection.run(work, **missing)


def _count(client: Any, name: str) -> int:
    return int(client.query(name, filter="", output_fields=["count(*)"], timeout=CALL_SECONDS)[0]["count(*)"])
