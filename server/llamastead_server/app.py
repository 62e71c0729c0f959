"""The composition root: builds the graph from the settings, starts it in order and stops it in reverse."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

from llamastead_server import logs
from llamastead_server.adapters.blob_store import FileBlobStore
from llamastead_server.adapters.chunk_store import SqlChunkStore
from llamastead_server.adapters.data_folder import DataFolder
from llamastead_server.adapters.database import Database
from llamastead_server.adapters.document_reader import KreuzbergReader
from llamastead_server.adapters.embedder import WorkerEmbedder
from llamastead_server.adapters.envoy import EnvoyGateway
from llamastead_server.adapters.example_catalogue import ExampleCatalogue
from llamastead_server.adapters.file_store import SqlFileStore
from llamastead_server.adapters.milvus_store import MilvusStore
from llamastead_server.adapters.model_catalog import ModelCatalog
from llamastead_server.adapters.model_registry import EngineOptions, LocalModelRegistry
from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.adapters.project_templates import ProjectTemplates
from llamastead_server.adapters.session_store import SqlSessionStore
from llamastead_server.adapters.task_store import SqlTaskStore
from llamastead_server.domain.chat import ChatTurns
from llamastead_server.domain.datasets import Datasets
from llamastead_server.domain.errors import AlreadyExists
from llamastead_server.domain.examples import Examples
from llamastead_server.domain.files import DatasetLocks
from llamastead_server.domain.ingestion import Ingestion
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.projects import Projects
from llamastead_server.domain.retrieval import Retriever
from llamastead_server.domain.retrieval_health import RetrievalHealth
from llamastead_server.domain.sessions import Sessions
from llamastead_server.domain.tasks import TaskRunner
from llamastead_server.services.datasets import PROCESS_DATASET
from llamastead_server.settings import Settings

_log = logging.getLogger("llamastead")
_ROOT = Path(__file__).parent.parent.parent
_ON_BOARD_MODELS = Path(__file__).parent / "models"
_SWEEP_INTERVAL = 60.0


def run(settings: Settings, *, example: str | None) -> int:
    """Serves until SIGINT or SIGTERM and returns the exit status."""
    logs.configure(settings.log_level, settings.log_format)
    if sys.platform == "win32":
        asyncio.run(_serve(settings, example))
    else:
        import uvloop

        uvloop.run(_serve(settings, example))
    return 0


def model_catalog(settings: Settings) -> ModelCatalog:
    """The installed models, without anything running."""
    return ModelCatalog(
        settings.models_folder,
        on_board_dir=_ON_BOARD_MODELS,
        default_model=settings.default_model,
        aliases=settings.model_aliases,
    )
