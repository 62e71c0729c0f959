"""The embedder worker: sentence-transformers behind gRPC, in a process of its own.

Run as `python -m llamastead_server.workers.embedder --socket PATH --model NAME [--models-folder FOLDER]`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import grpc

from llamastead.internal.v1 import embedder_pb2, embedder_pb2_grpc
from llamastead_server.domain.errors import InvalidRequest, LlamasteadError, NotFound
from llamastead_server.workers import child
from llamastead_server.workers.embedding_models import EmbeddingModel, EmbeddingModels, Rerankers, embedding_folder
from llamastead_server.workers.inference_queue import InferenceQueue, QueueFull

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[object, object]


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Embeds and reranks once its model is loaded; tells its state from the start.

    Args:
        model: Name of the embedding model.
        models_folder: Where further models lie.
        threads: CPU threads of one inference.
    """

    def __init__(self, model: str, models_folder: Path | None, threads: int) -> None:
        self._name = model
        self._models_folder = models_folder
        self._threads = threads
        self._queue = InferenceQueue()
        self._rerankers = Rerankers(models_folder)
        self._others = EmbeddingModels(models_folder, threads)
        self._reranker_loading = asyncio.Lock()
        self._model_loading = asyncio.Lock()
        self._loading: asyncio.Task[EmbeddingModel] | None = None

    def start_loading(self) -> None:
        """Begins to load the embedding model in a thread."""
        self._loading = asyncio.create_task(asyncio.to_thread(self._load))

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: _Context) -> embedder_pb2.EmbedResponse:
        """Embeds texts, waiting for the model if it is still loading, and loading another one if that is asked for."""
        model = await self._ready(context)
        name = request.model or self._name
        if name != self._name:
            async with self._model_loading:
                try:
                    model = await asyncio.to_thread(self._others.load, name)
                except LlamasteadError as error:
                    await _refuse(context, error)
        texts = list(request.texts)
        if not texts:
            return embedder_pb2.EmbedResponse(dimension=model.dimension, model=name)
        tokens = await self._count(model, name, texts, context) if request.count_tokens else 0
        try:
            vectors = await self._queue.run(model.encode, texts, [len(text) for text in texts], urgent=request.query)
        except QueueFull:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "The embedder's queue is full.")
        return embedder_pb2.EmbedResponse(
            dimension=model.dimension, vectors=vectors.astype("<f4").tobytes(), model=name, tokens=tokens
        )

    async def _count(self, model: EmbeddingModel, name: str, texts: Sequence[str], context: _Context) -> int:
        counts = await asyncio.to_thread(model.count_tokens, texts)
        for number, count in enumerate(counts):
            if count > model.window:
                reason = f"Text {number} has {count} tokens, but {name!r} reads {model.window}. Split it."
                await _refuse(context, InvalidRequest(reason))
        return sum(counts)

    async def Rerank(self, request: embedder_pb2.RerankRequest, context: _Context) -> embedder_pb2.RerankResponse:
        """Scores documents by a cross-encoder, loading it first if needed."""
        await self._ready(context)
        async with self._reranker_loading:
            try:
                score = await asyncio.to_thread(self._rerankers.load, request.model)
            except LlamasteadError as error:
                await _refuse(context, error)
        pairs = [(request.query, document) for document in request.documents]
        if not pairs:
            return embedder_pb2.RerankResponse()
        try:
            scores = await self._queue.run(score, pairs, [len(text) for _, text in pairs], urgent=True)
        except QueueFull:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "The embedder's queue is full.")
        return embedder_pb2.RerankResponse(scores=[float(value) for value in scores.reshape(-1)])

    async def GetEmbedderStatus(
        self, request: embedder_pb2.GetEmbedderStatusRequest, context: _Context
    ) -> embedder_pb2.GetEmbedderStatusResponse:
        """Tells whether the model is loaded."""
        status = embedder_pb2.GetEmbedderStatusResponse(
            state="loading", model=self._name, queued_texts=self._queue.size, memory_bytes=child.resident_bytes(),
            installed=dict.fromkeys([self._name, *self._others.available()]),
        )  # fmt: skip
        if self._loading is not None and self._loading.done():
            error = self._loading.exception()
            if error is None:
                status.state, status.dimension = "ready", self._loading.result().dimension
            else:
                status.state, status.error = "failed", str(error)
        return status

    def _load(self) -> EmbeddingModel:
        model = EmbeddingModel(embedding_folder(self._name, self._models_folder), self._threads)
        _log.info("embedding model %s is loaded: %d dimensions", self._name, model.dimension)
        return model

    async def _ready(self, context: _Context) -> EmbeddingModel:
        assert self._loading is not None, "start_loading was not called"
        # Shielded: a caller that goes away must not cancel the loading.
        await asyncio.wait([self._loading])
        error = self._loading.exception()
        if error is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"The embedding model failed to load: {error}")
        return self._loading.result()


async def _refuse(context: _Context, error: LlamasteadError) -> NoReturn:
    code = grpc.StatusCode.NOT_FOUND if isinstance(error, NotFound) else grpc.StatusCode.INVALID_ARGUMENT
    await context.abort(code, error.message)
    raise AssertionError("abort returned")


async def _serve(arguments: argparse.Namespace) -> None:
    servicer = EmbedderServicer(arguments.model, arguments.models_folder, arguments.threads)
    servicer.start_loading()
    await child.serve(
        arguments.socket, lambda server: embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server)
    )
    # There is nothing to save, and an orderly end would wait for a model that is still loading.
    os._exit(0)


def main() -> None:
    """Runs the worker until SIGTERM or the server's end."""
    parser = argparse.ArgumentParser(description="The embedder worker of Llamastead.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--models-folder", type=Path)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    arguments = parser.parse_args()
    child.die_with_parent()
    child.give_way(9)
    child.configure_logging()
    asyncio.run(_serve(arguments))


if __name__ == "__main__":
    main()
