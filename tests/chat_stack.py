"""Chat over real projects and sessions, with the scripted engine where exact timing matters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.project_files import ProjectFiles
from llamastead_server.adapters.session_store import SqlSessionStore
from llamastead_server.domain.chat.sessions import Sessions
from llamastead_server.domain.chat.turns import ChatTurns
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.errors import ModelNotFound
from llamastead_server.domain.models.generation import ModelCard
from llamastead_server.domain.models.keeper import Keeper
from llamastead_server.domain.models.runtime_settings import Configuration, RuntimeSettings
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import Chunk
from llamastead_server.domain.retrieval.sources import Source
from tests.fake_engine import FakeEngine

REF = ProjectRef("org", "bot")


class OneModel:
    """A registry whose only model is the scripted engine, under its name `fake` and the alias `llama3.2:3b`."""

    default_model = "fake"

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.leases = 0
        self.keepers: list[Keeper | None] = []

    @property
    def active_model(self) -> str | None:
        return self.engine.card.name if self.engine.card.loaded else None

    def list_models(self) -> Sequence[ModelCard]:
        return [self.engine.card]

    def resolve(self, name: str | None) -> ModelCard:
        if name not in (None, "fake", "llama3.2:3b", "llama3.3"):
            raise ModelNotFound(f"Model {name!r} is not installed. Installed: fake.")
        return self.engine.card

    @asynccontextmanager
    async def lease(self, name: str | None, *, keeper: Keeper | None = None) -> AsyncIterator[FakeEngine]:
        self.keepers.append(keeper)
        self.resolve(name)
        self.leases += 1
        try:
            yield self.engine
        finally:
            self.leases -= 1

    async def load(self, name: str, *, context_length: int | None = None) -> ModelCard:
        card = self.resolve(name)
        self.engine.card = replace(card, loaded=True, state="ready", context_length=context_length or 2048)
        return self.engine.card

    async def unload(self, name: str | None) -> Sequence[ModelCard]:
        if not self.engine.card.loaded:
            return []
        self.engine.card = replace(self.engine.card, loaded=False, state="available")
        return [self.engine.card]


class Drawer:
    """Keeps a saved configuration in memory."""

    def __init__(self) -> None:
        self.saved: Mapping[str, Any] | None = None

    async def read(self) -> Mapping[str, Any] | None:
        return self.saved

    async def write(self, content: Mapping[str, Any]) -> None:
        self.saved = content


class Shelf:
    """Finds the same passages for every question, and keeps what it was asked."""

    def __init__(self, *sources: Source) -> None:
        self.sources: Sequence[Source] = sources
        self.asked: list[dict[str, Any]] = []

    async def find(self, ref: ProjectRef, question: str, **settings: Any) -> Sequence[Source]:
        self.asked.append({"question": question, **settings})
        return self.sources


class ChatStack:
    """Everything a chat turn needs."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.engine = FakeEngine()
        self.models = OneModel(self.engine)
        self.shelf = Shelf()
        self.projects = ProjectFiles(folder / "projects")
        self.sessions = Sessions(SqlSessionStore(database))
        self.drawer = Drawer()
        self.settings = RuntimeSettings(Configuration(), self.drawer, lambda name: self.models.resolve(name).name)
        self.turns = self.with_timeout(30.0)

    def with_timeout(self, seconds: float) -> ChatTurns:
        return ChatTurns(
            self.projects,
            self.models,
            self.shelf,
            self.sessions,
            defaults=self.settings.parameters,
            request_timeout=lambda: seconds,
        )

    async def project(self, **fields: Any) -> None:
        raw = {"version": "v1", "name": REF.name, "namespace": REF.namespace, "runtime": {"model": "fake"}, **fields}
        config = ProjectConfig.parse(raw)
        await self.projects.create(REF, config)

    async def history(self, session_id: str = "s") -> list[tuple[str, str]]:
        return [(message.role, message.content) for message in await self.sessions.history(REF, session_id)]


def passage(text: str = "It closes at nine.", score: float = 0.8, page: int | None = 3) -> Source:
    return Source(Chunk("c1", "papers", "ab" * 32, "handbook.pdf", 0, text, page, {"author": "Ann"}), score)


@asynccontextmanager
async def chat_stack(folder: Path) -> AsyncIterator[ChatStack]:
    async with Database.in_folder(folder / "data") as database:
        yield ChatStack(folder, database)
