"""The section `rag` of llamafarm.yaml: databases and how documents get into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import model_validator

from llamastead_server.domain.config_section import Name, Section
from llamastead_server.domain.errors import NotFound
from llamastead_server.domain.processing_config import BUILT_IN_STRATEGIES, DataProcessingStrategy


class Strategy(Section):
    """A named embedding or retrieval strategy: a type and its settings."""

    name: Name
    type: str = ""
    config: dict[str, Any] = {}
    priority: int = 0
    default: bool = False


class Database(Section):
    """One searchable collection."""

    name: Name
    type: str = "MilvusStore"
    config: dict[str, Any] = {}
    embedding_strategies: list[Strategy] = []
    retrieval_strategies: list[Strategy] = []
    default_embedding_strategy: str | None = None
    default_retrieval_strategy: str | None = None

    @model_validator(mode="after")
    def _default_exists(self) -> Database:
        names = [entry.name for entry in self.retrieval_strategies]
        if names and self.default_retrieval_strategy is not None and self.default_retrieval_strategy not in names:
            raise ValueError(
                f"default_retrieval_strategy {self.default_retrieval_strategy!r} is not one of retrieval_strategies: "
                f"{', '.join(names)}"
            )
        return self

    def retrieval_strategy(self, name: str | None) -> Strategy | None:
        """The configured strategy a name means; `None` is the default one; no match is `None`."""
        wanted = name or self.default_retrieval_strategy
        if wanted is not None:
            return next((entry for entry in self.retrieval_strategies if entry.name == wanted), None)
        marked = next((entry for entry in self.retrieval_strategies if entry.default), None)
        return marked or (self.retrieval_strategies[0] if self.retrieval_strategies else None)


class Rag(Section):
    """Retrieval: databases and how documents get into them."""

    default_database: str | None = None
    databases: list[Database] = []
    data_processing_strategies: list[DataProcessingStrategy] = []

    @model_validator(mode="after")
    def _names_are_consistent(self) -> Rag:
        names = [database.name for database in self.databases]
        if len(names) != len(set(names)):
            raise ValueError("two databases have the same name")
        if self.default_database is not None and self.default_database not in names:
            raise ValueError(f"default_database {self.default_database!r} is not one of databases: {', '.join(names)}")
        return self

    def database(self, name: str | None) -> Database:
        """The database a request means; `None` is the default one, else the first.

        Raises:
            NotFound: The project configures no such database, or none at all.
        """
        wanted = name or self.default_database
        if wanted is None and self.databases:
            return self.databases[0]
        for database in self.databases:
            if database.name == wanted:
                return database
        if not self.databases:
            raise NotFound(
                f"Database {wanted or '(default)'!r} not found: this project has none. Make it from the template "
                "`rag`, or add `rag.databases` to its configuration."
            )
        configured = ", ".join(database.name for database in self.databases)
        raise NotFound(f"Database {wanted or '(default)'!r} not found. Configured: {configured}.")

    def strategy_names(self) -> Sequence[str]:
        """Processing strategies a dataset may name: the configured ones, then the built-in ones."""
        configured = [strategy.name for strategy in self.data_processing_strategies]
        return [*configured, *(name for name in BUILT_IN_STRATEGIES if name not in configured)]

    def processing_strategy(self, name: str) -> DataProcessingStrategy:
        """Raises `NotFound` when neither configured nor built in."""
        for strategy in self.data_processing_strategies:
            if strategy.name == name:
                return strategy
        if name in BUILT_IN_STRATEGIES:
            return BUILT_IN_STRATEGIES[name]
        raise NotFound(f"Data processing strategy {name!r} not found. Available: {', '.join(self.strategy_names())}.")
