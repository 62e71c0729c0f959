"""The section `rag` of llamafarm.yaml: databases and how documents get into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from llamastead_server.domain.config.parsers import PARSER_TYPES
from llamastead_server.domain.config.processing import BUILT_IN_STRATEGIES, DataProcessingStrategy, Parser
from llamastead_server.domain.config.retrieval_settings import METRICS, Metric
from llamastead_server.domain.config.section import MOST_ENTRIES, Name, Section
from llamastead_server.domain.config.strategies import Components, EmbeddingStrategy, RetrievalStrategy
from llamastead_server.domain.errors import NotFound

DATABASE_TYPE = "MilvusStore"
DATABASE_TYPES = (DATABASE_TYPE, "ChromaStore", "QdrantStore", "FAISSStore", "PineconeStore")
"""Types of databases; whatever the type says, the server's Milvus holds them all."""

BUILT_IN_RETRIEVAL = ("vector", "keyword", "hybrid")
"""Names of the retrieval strategies that every database has."""

_PARSER_COMPONENTS = "rag.components.parsers."
_METRIC_KEYS = ("distance_metric", "distance_function", "distance")
_EFFECTIVE = frozenset({*_METRIC_KEYS, "enable_deduplication"})


class Database(Section):
    """One searchable collection."""

    name: Name
    type: str = DATABASE_TYPE
    config: dict[str, Any] = {}
    embedding_strategies: list[EmbeddingStrategy] = Field([], max_length=MOST_ENTRIES)
    retrieval_strategies: list[RetrievalStrategy] = Field([], max_length=MOST_ENTRIES)
    default_embedding_strategy: str | None = None
    default_retrieval_strategy: str | None = None
    embedding_reference: str | None = Field(None, alias="embedding_strategy")
    retrieval_reference: str | None = Field(None, alias="retrieval_strategy")

    @field_validator("type")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in DATABASE_TYPES:
            raise ValueError(f"the type {value!r} is not one of {', '.join(DATABASE_TYPES)}")
        return value

    @field_validator("config")
    @classmethod
    def _right(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in _METRIC_KEYS:
            metric = value.get(key)
            if metric is not None and (not isinstance(metric, str) or metric.lower() not in METRICS):
                raise ValueError(f"{key} must be one of {', '.join(METRICS)}")
        if value.get("enable_deduplication") is False:
            raise ValueError("enable_deduplication can't be off: the same text of a file is found once")
        return value

    @model_validator(mode="after")
    def _defaults_exist(self) -> Database:
        # A reference to a component adds a strategy that is not listed here.
        for key, wanted, entries, reference, built_in in (
            (
                "retrieval", self.default_retrieval_strategy, self.retrieval_strategies, self.retrieval_reference,
                BUILT_IN_RETRIEVAL,
            ),
            ("embedding", self.default_embedding_strategy, self.embedding_strategies, self.embedding_reference, ()),
        ):  # fmt: skip
            names = [entry.name for entry in entries]
            if len(names) != len(set(names)):
                raise ValueError(f"two {key}_strategies have the same name")
            known = names or built_in
            if wanted is not None and wanted not in known and wanted != reference:
                there = ", ".join(known) or "there are none"
                raise ValueError(f"default_{key}_strategy {wanted!r} is not one of {key}_strategies: {there}")
        return self

    @property
    def distance_metric(self) -> Metric:
        """How its vector searches score, unless a strategy or a query says otherwise."""
        named = next((self.config[key] for key in _METRIC_KEYS if self.config.get(key)), "cosine")
        return METRICS[named.lower()]

    @property
    def ineffective(self) -> Sequence[str]:
        """Its settings that have no effect, because the server keeps the collection itself."""
        return sorted(key for key, value in self.config.items() if key not in _EFFECTIVE and value is not None)

    @property
    def embedding(self) -> EmbeddingStrategy | None:
        """The strategy its chunks are embedded by: the default one, else the one of highest priority."""
        entries = self.embedding_strategies
        wanted = self.default_embedding_strategy
        named = next((entry for entry in entries if entry.name == wanted), None)
        marked = next((entry for entry in entries if entry.default), None)
        return named or marked or max(entries, key=lambda entry: entry.priority, default=None)

    def retrieval_strategy(self, name: str | None) -> RetrievalStrategy | None:
        """The configured strategy a name means; `None` is the default one; no match is `None`."""
        wanted = name or self.default_retrieval_strategy
        if wanted is not None:
            return next((entry for entry in self.retrieval_strategies if entry.name == wanted), None)
        marked = next((entry for entry in self.retrieval_strategies if entry.default), None)
        return marked or (self.retrieval_strategies[0] if self.retrieval_strategies else None)


class Rag(Section):
    """Retrieval: databases and how documents get into them."""

    components: Components = Components()
    default_database: str | None = None
    databases: list[Database] = Field([], max_length=MOST_ENTRIES)
    data_processing_strategies: list[DataProcessingStrategy] = Field([], max_length=MOST_ENTRIES)
    _shared: Components = PrivateAttr(default_factory=Components)

    @model_validator(mode="after")
    def _names_are_consistent(self, info: ValidationInfo) -> Rag:
        self._shared = self.components.with_others(_outside(info.context))
        names = [database.name for database in self.databases]
        if len(names) != len(set(names)):
            raise ValueError("two databases have the same name")
        if self.default_database is not None and self.default_database not in names:
            raise ValueError(f"default_database {self.default_database!r} is not one of databases: {', '.join(names)}")
        for database in self.databases:
            try:
                self._resolved(database)
            except ValueError as error:
                raise ValueError(f"database {database.name!r}: {error}") from None
        return self

    @property
    def default_name(self) -> str | None:
        """Name of the database that requests mean which name none."""
        return self.default_database or (self.databases[0].name if self.databases else None)

    def database(self, name: str | None) -> Database:
        """The database a request means, with the components it refers to; `None` is the default one, else the first.

        Raises:
            NotFound: The project configures no such database, or none at all.
        """
        wanted = name or self.default_name
        for database in self.databases:
            if database.name == wanted:
                return self._resolved(database)
        if not self.databases:
            raise NotFound(
                f"Database {wanted or '(default)'!r} not found: this project has none. Make it from the template "
                "`rag`, or add `rag.databases` to its configuration."
            )
        configured = ", ".join(database.name for database in self.databases)
        raise NotFound(f"Database {wanted or '(default)'!r} not found. Configured: {configured}.")

    def _resolved(self, database: Database) -> Database:
        """The database with the components it refers to, or those for all, as its own first and default strategies."""
        shared, defaults = self._shared, self._shared.defaults
        change = {
            **_chosen(
                "embedding", database, database.embedding_reference, defaults.embedding_strategy, shared.embedding
            ),
            **_chosen(
                "retrieval", database, database.retrieval_reference, defaults.retrieval_strategy, shared.retrieval
            ),
        }
        return database.model_copy(update=change)

    def strategy_names(self) -> Sequence[str]:
        """Processing strategies a dataset may name: the configured ones, then the built-in ones."""
        configured = [strategy.name for strategy in self.data_processing_strategies]
        return [*configured, *(name for name in BUILT_IN_STRATEGIES if name not in configured)]

    def processing_strategy(self, name: str) -> DataProcessingStrategy:
        """The strategy, with the parsers it refers to as its own; raises `NotFound` when there is none of that name."""
        for strategy in self.data_processing_strategies:
            if strategy.name == name:
                parsers = [self.parser(entry) if isinstance(entry, str) else entry for entry in strategy.parsers]
                return strategy.model_copy(update={"parsers": parsers})
        if name in BUILT_IN_STRATEGIES:
            return BUILT_IN_STRATEGIES[name]
        raise NotFound(f"Data processing strategy {name!r} not found. Available: {', '.join(self.strategy_names())}.")

    def parser(self, name: str) -> Parser:
        """The parser that a strategy only names: one of the components, else a type with its defaults.

        Raises:
            ValueError: It is neither.
        """
        own = name.removeprefix(_PARSER_COMPONENTS)
        named = [entry.name for entry in self._shared.parsers]
        if own in named:
            return self._shared.parser(own)
        if own in PARSER_TYPES:
            return Parser(type=own)
        raise ValueError(
            f"{name!r} is no parser: name one of rag.components.parsers ({', '.join(named) or 'it has none'}), or use "
            f"one of {', '.join(PARSER_TYPES)}"
        )


def _chosen(
    kind: str, database: Database, reference: str | None, default: str | None, find: Callable[[str], Any]
) -> dict[str, Any]:
    """What changes for a database by the component it refers to, else by the default one if it says nothing itself."""
    own, marked = getattr(database, f"{kind}_strategies"), getattr(database, f"default_{kind}_strategy")
    wanted = reference or (None if own or marked else default)
    if wanted is None:
        named = marked is None and default in [entry.name for entry in own]
        return {f"default_{kind}_strategy": default} if named else {}
    found = find(wanted)
    others = [entry for entry in own if entry.name != found.name]
    return {f"{kind}_strategies": [found, *others], f"default_{kind}_strategy": marked or found.name}


def _outside(context: Any) -> Components:
    """The components that stand outside `rag`, where LlamaFarm's files may have them too."""
    try:
        return Components.model_validate(context or {})
    except ValidationError:
        return Components()  # What is wrong with them is said under their own path.
