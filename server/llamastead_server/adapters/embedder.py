"""The embedder as the domain sees it: a client of the supervised embedder worker."""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import grpc

from llamastead.internal.v1 import embedder_pb2, embedder_pb2_grpc
from llamastead_server.adapters.supervision import Supervision, WorkerStatus
from llamastead_server.adapters.worker_process import WorkerProcess
from llamastead_server.domain.errors import (
    Internal,
    InvalidRequest,
    LlamasteadError,
    ModelNotFound,
    Overloaded,
    RequestTimeout,
    Unavailable,
)
from llamastead_server.domain.operations.meters import Meters, NoMeters
from llamastead_server.domain.ports import Embedded, Embedder

_QUERY_SECONDS = 30.0
_PASSAGES_SECONDS = 300.0
_TEXTS_PER_CALL = 256


class WorkerEmbedder:
    """Embeds by the worker process, remembering the vectors of recent queries.

    It starts the worker when entered, waits until the model is loaded, and stops it when left.

    Args:
        model: Name of the embedding model.
        models_folder: Where further embedding models and cross-encoders lie.
        threads: CPU threads of the worker. Default: cores less one.
        cached_queries: Query vectors to remember.
        supervision: How closely the worker is watched.
        meters: Where the number of embedded passages goes.
    """

    def __init__(
        self,
        model: str,
        models_folder: Path | None = None,
        *,
        threads: int | None = None,
        cached_queries: int = 512,
        supervision: Supervision | None = None,
        meters: Meters | None = None,
    ) -> None:
        self._model = model
        self._cached_queries = cached_queries
        self._cache: OrderedDict[tuple[str, str], Sequence[float]] = OrderedDict()
        self._dimensions: dict[str, int] = {}
        self._meters = meters or NoMeters()
        arguments = ["--model", model]
        if models_folder is not None:
            arguments += ["--models-folder", str(models_folder)]
        if threads is not None:
            arguments += ["--threads", str(threads)]
        self._worker = WorkerProcess(
            "embedder", "llamastead_server.workers.embedder", arguments, _probe, supervision or Supervision()
        )

    async def __aenter__(self) -> WorkerEmbedder:
        await self._worker.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._worker.stop()

    @property
    def model(self) -> str:
        """Name of the embedding model."""
        return self._model

    @property
    def worker(self) -> WorkerProcess:
        """The supervised process, for health reports."""
        return self._worker

    async def installed(self) -> Sequence[str]:
        """Names of the embedding models on this machine: the server's own, and those in the models folder."""
        return list((await self._status()).installed)

    def using(self, model: str) -> Embedder:
        """The same worker with another of its models."""
        return self if model == self._model else _OtherModel(self, model)

    async def dimension(self, model: str | None = None) -> int:
        """Length of a vector; raises `Unavailable` while the worker is down, also when the length is known."""
        name = model or self._model
        self._stub()
        if name not in self._dimensions:
            await self._embed([], name, query=True, timeout=_PASSAGES_SECONDS)
        return self._dimensions[name]

    async def embed_query(self, text: str, model: str | None = None) -> Sequence[float]:
        """Embeds a query, ahead of any passages that wait."""
        key = (model or self._model, text)
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        vector = (await self._embed([text], key[0], query=True, timeout=_QUERY_SECONDS)).vectors[0]
        self._cache[key] = vector
        while len(self._cache) > self._cached_queries:
            self._cache.popitem(last=False)
        return vector

    async def embed_passages(self, texts: Sequence[str], model: str | None = None) -> Sequence[Sequence[float]]:
        """Embeds passages for the index."""
        vectors: list[Sequence[float]] = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            part = texts[start : start + _TEXTS_PER_CALL]
            answer = await self._embed(part, model or self._model, query=False, timeout=_PASSAGES_SECONDS)
            vectors += answer.vectors
            self._meters.embedded(len(part))
        return vectors

    async def embed_counted(self, texts: Sequence[str], model: str | None = None) -> Embedded:
        """Embeds texts for a client, in the queue of passages; see `domain.ports.Embedder`."""
        vectors: list[Sequence[float]] = []
        tokens = 0
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            part = texts[start : start + _TEXTS_PER_CALL]
            name = model or self._model
            answer = await self._embed(part, name, query=False, timeout=_PASSAGES_SECONDS, count_tokens=True)
            vectors += answer.vectors
            tokens += answer.tokens
        return Embedded(vectors, tokens)

    async def clear_cache(self) -> int:
        """Forgets the remembered query vectors and returns the bytes this freed."""
        remembered, self._cache = self._cache, OrderedDict()
        return sum(
            sys.getsizeof(text) + sys.getsizeof(vector) + sum(map(sys.getsizeof, vector))
            for (_, text), vector in remembered.items()
        )

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Sequence[float]:
        """Scores documents in [0, 1] by a cross-encoder in the models folder."""
        request = embedder_pb2.RerankRequest(model=model, query=query, documents=documents)
        try:
            response = await self._stub().Rerank(request, timeout=_PASSAGES_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        return list(response.scores)

    def _stub(self) -> embedder_pb2_grpc.EmbedderServiceAsyncStub:
        return embedder_pb2_grpc.EmbedderServiceStub(self._worker.channel)

    async def _status(self) -> embedder_pb2.GetEmbedderStatusResponse:
        request = embedder_pb2.GetEmbedderStatusRequest()
        try:
            return await self._stub().GetEmbedderStatus(request, timeout=_QUERY_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error

    async def _embed(
        self, texts: Sequence[str], model: str, *, query: bool, timeout: float, count_tokens: bool = False
    ) -> Embedded:
        request = embedder_pb2.EmbedRequest(model=model, texts=texts, query=query, count_tokens=count_tokens)
        try:
            response = await self._stub().Embed(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        floats = array("f", response.vectors)
        if sys.byteorder == "big":
            floats.byteswap()
        width = self._dimensions[model] = response.dimension
        if len(floats) != width * len(texts):
            raise Internal("The embedder gave a wrong number of vectors.")
        vectors = [floats[start : start + width] for start in range(0, len(floats), width)]
        return Embedded(vectors, response.tokens)


class _OtherModel:
    """The worker's embedder with another model than its first."""

    def __init__(self, worker: WorkerEmbedder, model: str) -> None:
        self._worker = worker
        self._model = model

    @property
    def model(self) -> str:
        """Name of the embedding model."""
        return self._model

    async def installed(self) -> Sequence[str]:
        """Names of the embedding models on this machine."""
        return await self._worker.installed()

    def using(self, model: str) -> Embedder:
        """The same worker with another of its models."""
        return self._worker.using(model)

    async def dimension(self) -> int:
        """Length of a vector."""
        return await self._worker.dimension(self._model)

    async def embed_query(self, text: str) -> Sequence[float]:
        """Embeds a query."""
        return await self._worker.embed_query(text, self._model)

    async def embed_passages(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Embeds passages for the index."""
        return await self._worker.embed_passages(texts, self._model)

    async def embed_counted(self, texts: Sequence[str]) -> Embedded:
        """Embeds texts for a client."""
        return await self._worker.embed_counted(texts, self._model)

    async def rerank(self, model: str, query: str, documents: Sequence[str]) -> Sequence[float]:
        """Scores documents in [0, 1] by a cross-encoder."""
        return await self._worker.rerank(model, query, documents)


async def _probe(channel: grpc.aio.Channel) -> WorkerStatus:
    stub: embedder_pb2_grpc.EmbedderServiceAsyncStub = embedder_pb2_grpc.EmbedderServiceStub(channel)
    status = await stub.GetEmbedderStatus(embedder_pb2.GetEmbedderStatusRequest())
    return WorkerStatus(status.state, status.error)


def _translated(error: grpc.aio.AioRpcError) -> LlamasteadError:
    details = error.details() or "it gave no reason"
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return ModelNotFound(details)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(details)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded("Too many texts wait to be embedded; try again shortly.", retry_after=2.0)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return RequestTimeout("The embedder did not answer in time.")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable("The embedder went away; it is being started again.", retry_after=5.0)
    return Internal(f"The embedder failed: {details}")
