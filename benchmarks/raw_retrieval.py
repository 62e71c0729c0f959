"""Embedding and searching with nothing around them: the embedder worker and Milvus, called straight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.stack import Stack
from llamastead.internal.v1 import embedder_pb2, embedder_pb2_grpc

_OPTIONS = (("grpc.max_receive_message_length", 256 << 20), ("grpc.max_send_message_length", 256 << 20))


class RawEmbedder:
    """The embedder worker of the server under test, over its own socket."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = embedder_pb2_grpc.EmbedderServiceStub(channel)

    def embed(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        """Embeds texts; one row each."""
        answer = self._stub.Embed(embedder_pb2.EmbedRequest(texts=texts, query=query), timeout=600)
        return np.frombuffer(answer.vectors, dtype="<f4").reshape(len(texts), answer.dimension)


class RawMilvus:
    """The one collection of the server under test, through pymilvus."""

    def __init__(self, client: Any) -> None:
        self._client = client
        (self._collection,) = client.list_collections()

    def search_vector(self, vector: NDArray[np.float32], limit: int) -> int:
        """Finds the nearest chunks; returns how many were found."""
        return self._search("vector", vector, "COSINE", limit)

    def search_keyword(self, query: str, limit: int) -> int:
        """Finds the chunks with the highest BM25 scores; returns how many were found."""
        return self._search("sparse", query, "BM25", limit)

    def _search(self, field: str, data: Any, metric: str, limit: int) -> int:
        found = self._client.search(
            self._collection, data=[data], anns_field=field, limit=limit, output_fields=["text"],
            search_params={"metric_type": metric, "params": {}}, timeout=60,
        )  # fmt: skip
        return len(found[0])


@contextlib.contextmanager
def raw_embedder(stack: Stack) -> Iterator[RawEmbedder]:
    """The embedder of a running server."""
    with grpc.insecure_channel(stack.processes()["embedder worker"].socket, options=_OPTIONS) as channel:
        yield RawEmbedder(channel)


@contextlib.contextmanager
def raw_milvus(stack: Stack) -> Iterator[RawMilvus]:
    """The vector store of a running server that has one collection."""
    import pymilvus

    client = pymilvus.MilvusClient(uri=stack.processes()["Milvus Lite"].socket, timeout=60)
    try:
        yield RawMilvus(client)
    finally:
        client.close()
