"""The composition root: builds the graph from the settings and starts it in order."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

from llamastead_server import access, health_checks, operating, startup
from llamastead_server.adapters.blob_store import FileBlobStore
from llamastead_server.adapters.chunk_store import SqlChunkStore
from llamastead_server.adapters.data_folder import DataFolder
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.database_contents import SqlDatabaseContents
from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.envoy import EnvoyGateway, GatewayOptions, check_port
from llamastead_server.adapters.example_catalogue import ExampleCatalogue
from llamastead_server.adapters.file_store import SqlFileStore
from llamastead_server.adapters.gpu import GpuHost
from llamastead_server.adapters.gpu_models import GpuModels
from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.adapters.model_catalog import ModelCatalog
from llamastead_server.adapters.model_registry import EngineOptions, LocalModelRegistry
from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.adapters.project_templates import ProjectTemplates
from llamastead_server.adapters.prometheus_meters import PrometheusMeters
from llamastead_server.adapters.remote_engine import HttpEngines
from llamastead_server.adapters.session_store import SqlSessionStore
from llamastead_server.background import background
from llamastead_server.domain.access.tokens import Tokens
from llamastead_server.domain.chat.completion import Completions
from llamastead_server.domain.chat.prompt_turns import PromptTurns
from llamastead_server.domain.chat.sessions import Sessions
from llamastead_server.domain.chat.turns import ChatTurns
from llamastead_server.domain.datasets.actions import DatasetActions
from llamastead_server.domain.datasets.datasets import Datasets
from llamastead_server.domain.datasets.file_removal import FileRemoval
from llamastead_server.domain.datasets.files import DatasetLocks
from llamastead_server.domain.datasets.ingestion import Ingestion
from llamastead_server.domain.datasets.previews import Previews
from llamastead_server.domain.datasets.reindexing import Reindexing
from llamastead_server.domain.models.embeddings import Embeddings
from llamastead_server.domain.models.routing import ModelRouter
from llamastead_server.domain.operations.log_book import LogBook
from llamastead_server.domain.operations.shutdown import Shutdown
from llamastead_server.domain.projects.examples import Examples
from llamastead_server.domain.projects.projects import Projects
from llamastead_server.domain.retrieval.databases import Databases
from llamastead_server.domain.retrieval.health import RetrievalHealth
from llamastead_server.domain.retrieval.retriever import Retriever
from llamastead_server.services.auth import BearerAuth
from llamastead_server.services.batch_lines import BatchLines
from llamastead_server.services.batches import BatchServicer
from llamastead_server.services.chat import ChatServicer
from llamastead_server.services.config import ConfigServicer
from llamastead_server.services.datasets import DatasetServicer
from llamastead_server.services.examples import ExampleServicer
from llamastead_server.services.limit_layer import LimitLayer
from llamastead_server.services.models import ModelServicer
from llamastead_server.services.openai import ModelChat, OpenAIServicer
from llamastead_server.services.openapi_document import OpenApiDocument
from llamastead_server.services.operations import OperationsServicer
from llamastead_server.services.projects import ProjectServicer
from llamastead_server.services.prompts import PromptServicer
from llamastead_server.services.retrieval import RetrievalServicer
from llamastead_server.services.server import GrpcServer, ServerLimits
from llamastead_server.services.server import build as build_server
from llamastead_server.services.system import SystemServicer
from llamastead_server.services.tasks import TaskServicer
from llamastead_server.services.telemetry import Telemetry
from llamastead_server.services.tokens import TokenServicer
from llamastead_server.services.websocket import WebSocketBounds, WebSocketServer
from llamastead_server.services.websocket_work import WebSocketWork
from llamastead_server.settings import Settings

_log = logging.getLogger("llamastead")
_ROOT = Path(__file__).parent.parent.parent
_ON_BOARD_MODELS = Path(__file__).parent / "models"
_SWEEP_INTERVAL = 60.0
_LAST_WORDS = 2.0
"""Seconds that streams get to tell their clients that the server stops."""


def model_catalog(settings: Settings) -> ModelCatalog:
    """The installed models, without anything running."""
    return ModelCatalog(
        settings.models_folder,
        on_board_dir=_ON_BOARD_MODELS,
        default_model=settings.default_model,
        aliases=settings.model_aliases,
        gpu=not _gpu_host(settings).missing(),
    )


def _gpu_host(settings: Settings) -> GpuHost:
    return GpuHost(enabled=settings.gpu == "auto")


async def start(
    stack: AsyncExitStack, settings: Settings, example: str | None, log: LogBook, shutdown: Shutdown
) -> Tokens:
    """Starts every part, each on what stands before it; the stack stops them in reverse."""
    folder = stack.enter_context(DataFolder(settings.data_dir))
    catalogue = ExampleCatalogue(settings.examples_dir or _ROOT / "examples")
    # What can't work is said before the seconds that models take to load.
    check_port(settings.host, settings.port, "LLAMASTEAD_PORT")
    check_port(settings.host, settings.grpc_port, "LLAMASTEAD_GRPC_PORT")
    if example is not None:
        await catalogue.get(example)
    url = settings.database_url
    database = await stack.enter_async_context(
        Database(url, for_server=True) if url else Database.in_folder(settings.data_dir)
    )
    tokens = await access.open_tokens(stack, settings, database)
    limits, redis = access.open_limits(stack, settings)
    catalog, meters = model_catalog(settings), PrometheusMeters()
    runtime = operating.runtime_settings(settings, catalog, limits)
    await runtime.restore()
    models = LocalModelRegistry(
        catalog,
        settings.models_folder,
        EngineOptions(
            settings.context_length,
            settings.engine_slots,
            settings.engine_queue,
            settings.engine_threads,
            prompt_cache_bytes=lambda: runtime.system.cache_bytes,
        ),
        max_loaded=settings.max_loaded_models,
        meters=meters,
        gpu=GpuModels(catalog, _gpu_host(settings), settings.gpu_defaults, settings.data_dir / "cuda-extensions"),
    )
    stack.push_async_callback(models.close)
    store, embedder, reader, _ = await startup.all_at_once(
        stack.enter_async_context(_vector_store(settings)),
        stack.enter_async_context(WorkerEmbedder(settings.embedding_model, settings.models_folder, meters=meters)),
        stack.enter_async_context(
            KreuzbergReader(timeout=settings.parser_timeout, memory_bytes=settings.parser_memory_bytes)
        ),
        startup.preload(models),
    )

    projects_folder = settings.data_dir / "projects"
    files, chunks, locks = SqlFileStore(database), SqlChunkStore(database), DatasetLocks()
    blobs = FileBlobStore(projects_folder, max_bytes=settings.max_upload_bytes)
    configs = ProjectFiles(projects_folder)
    datasets = Datasets(configs, files, chunks, blobs, store, locks, time.time)
    actions = DatasetActions(configs, files, FileRemoval(files, chunks, blobs, store, locks), locks)
    ingestion = Ingestion(configs, files, chunks, blobs, store, embedder, reader, locks)
    databases = Databases(configs, chunks, SqlDatabaseContents(database), store, embedder, locks)
    reindexing = Reindexing(configs, chunks, store, embedder, locks)
    sessions = Sessions(SqlSessionStore(database), ttl=settings.session_ttl)
    retriever = Retriever(configs, embedder, store, chunks)
    remote = await stack.enter_async_context(HttpEngines(settings.request_timeout))
    router = ModelRouter(models, remote, settings.remote_hosts, os.environ)
    turns = ChatTurns(
        configs,
        models,
        retriever,
        sessions,
        router=router,
        defaults=runtime.parameters,
        request_timeout=lambda: runtime.system.request_timeout_seconds,
    )
    completions, embeddings = Completions(models, runtime), Embeddings(embedder, settings.model_aliases)
    lines = BatchLines(turns, completions, embeddings)
    tasks, batches = background(settings, database, models, ingestion, reindexing, lines)
    resources = (tasks, datasets, sessions, models.kept)
    projects = Projects(
        configs,
        ProjectTemplates(settings.data_dir / "templates"),
        lambda: models.default_model,
        resources,
        datasets.filled,
    )
    examples = Examples(
        catalogue,
        projects,
        datasets,
        tasks,
        default_model=lambda: models.default_model,
    )
    await configs.sweep()
    await datasets.reconcile()
    await batches.resume()
    await tasks.start()
    stack.push_async_callback(tasks.stop)
    sweeping = asyncio.create_task(_sweep(sessions))
    stack.callback(sweeping.cancel)

    auth, telemetry = BearerAuth(tokens), Telemetry(meters)
    metrics = operating.brief_metrics(models, telemetry)
    websocket = WebSocketServer(
        WebSocketWork(turns, tasks, models, metrics),
        auth,
        limits,
        WebSocketBounds(message_bytes=settings.max_body_bytes),
    )
    socket, websocket_socket = folder.sockets / "server.sock", folder.sockets / "websocket.sock"
    gateway = EnvoyGateway(
        GatewayOptions(
            host=settings.host,
            port=settings.port,
            server_socket=socket,
            folder=folder.sockets,
            max_body_bytes=settings.max_body_bytes,
            cors_origins=settings.cors_origins,
            websocket_socket=websocket_socket,
        )
    )
    checks = health_checks.parts(models, embedder, store, database, gateway, redis)
    operations = operating.operations(settings, models, embedder, blobs, meters, checks, log, shutdown)
    server = build_server(
        [
            BatchServicer(batches),
            ChatServicer(turns, sessions, configs),
            ConfigServicer(runtime, models),
            DatasetServicer(datasets, actions, ingestion, tasks),
            ExampleServicer(examples),
            ModelServicer(configs, models, runtime, router),
            OpenAIServicer(ModelChat(turns, sessions, configs), completions, models, embedder, embeddings),
            OperationsServicer(operations),
            ProjectServicer(projects),
            PromptServicer(PromptTurns(turns, runtime)),
            RetrievalServicer(
                retriever,
                RetrievalHealth(configs, embedder, store, chunks),
                databases,
                Previews(configs, files, blobs, reader),
                reindexing,
                tasks,
            ),
            SystemServicer(
                version("llamastead"),
                settings.data_dir,
                settings.models_folder,
                OpenApiDocument(),
                checks,
                health_checks.seeds(models, f"{settings.host}:{settings.port}"),
            ),
            TaskServicer(tasks),
            TokenServicer(tokens),
        ],
        host=settings.host,
        grpc_port=settings.grpc_port,
        socket=socket,
        layers=[auth, LimitLayer(limits)],
        telemetry=telemetry,
        with_reflection=settings.reflection,
        limits=ServerLimits(message_bytes=2 * settings.max_body_bytes),
    )
    # In reverse: the end of what has none, no new connections, the running calls' grace, then the connections' end.
    stack.push_async_callback(gateway.stop)
    stack.push_async_callback(_end_calls, server, websocket, models, shutdown)
    stack.push_async_callback(gateway.drain)
    stack.callback(log.end_following)
    await server.start()
    await websocket.start(websocket_socket)
    await server.set_serving(True)
    await gateway.start()
    if example is not None:
        await startup.import_example(examples, tasks, example)
    return tokens


async def _end_calls(
    server: GrpcServer, websocket: WebSocketServer, models: LocalModelRegistry, shutdown: Shutdown
) -> None:
    """Gives running calls their grace, then takes the engines away from those that are left.

    Cancelled at once, a stream would look complete to its client; so it fails, and can say so in a last event.
    """
    grace = shutdown.grace
    whole = grace + _LAST_WORDS
    stopping = [asyncio.create_task(server.stop(whole)), asyncio.create_task(websocket.stop(whole))]
    _, running = await asyncio.wait(stopping, timeout=grace)
    if running:
        await models.close()
    await asyncio.gather(*stopping)


async def _sweep(sessions: Sessions) -> None:
    while True:
        try:
            await sessions.sweep()
        except Exception:
            _log.exception("forgetting old sessions failed")
        await asyncio.sleep(_SWEEP_INTERVAL)


def _vector_store(settings: Settings) -> MilvusStore:
    if settings.milvus_uri:
        return MilvusStore.cluster(settings.milvus_uri, settings.milvus_token)
    return MilvusStore.embedded(settings.data_dir)
