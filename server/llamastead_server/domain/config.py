"""The shape of llamafarm.yaml: what a project is.

Both runtime forms of LlamaFarm's documents are read: a single model (`runtime.provider`, `runtime.model`)
and a list (`runtime.models[]` with `runtime.default_model`). Keys this server does not use are kept, so a
file edited by hand or written by another LlamaFarm tool survives a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from llamastead_server.domain.errors import NotFound, ValidationFailed

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
UNIVERSAL_STRATEGY = "universal_processor"
DEFAULT_CHUNK_SIZE = 500
DEFAULT_CHUNK_OVERLAP = 50


class _Section(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=(), populate_by_name=True)


class PromptMessage(_Section):
    """A configured message that precedes the conversation."""

    role: Literal["system", "user", "assistant"] = "system"
    content: str


class PromptSet(_Section):
    """A named list of messages that models refer to."""

    name: Name
    messages: list[PromptMessage]


class RuntimeModel(_Section):
    """One model a project can use."""

    name: str = Field(min_length=1, max_length=200)
    provider: str = "llamastead"
    model: str = Field(min_length=1, max_length=500)
    description: str | None = None
    base_url: str | None = None
    prompts: list[str] = []
    model_api_parameters: dict[str, Any] = {}
    rag_enabled: bool | None = None
    target_database: str | None = None


class Runtime(_Section):
    """Which models a project talks to."""

    provider: str | None = None
    model: str | None = None
    models: list[RuntimeModel] = []
    default_model: str | None = None

    @model_validator(mode="after")
    def _has_a_model(self) -> Runtime:
        names = [model.name for model in self.models]
        if len(names) != len(set(names)):
            raise ValueError("two entries of models have the same name")
        if not names and not self.model:
            raise ValueError("give either `model`, or `models` with at least one entry")
        if names and self.default_model is not None and self.default_model not in names:
            raise ValueError(f"default_model {self.default_model!r} is not one of models: {', '.join(names)}")
        return self

    def all_models(self) -> Sequence[RuntimeModel]:
        """Both forms as one list; the single form is an entry named after its model."""
        if self.models:
            return self.models
        assert self.model is not None
        shared = {
            key: value for key, value in self.model_dump(exclude_none=True).items() if key in RuntimeModel.model_fields
        }
        return [RuntimeModel.model_validate({**shared, "name": self.model})]

    def select(self, name: str | None) -> RuntimeModel:
        """The entry a request means: by its name or its model string; `None` is the default.

        Raises:
            NotFound: The project configures no such model.
        """
        models = self.all_models()
        wanted = name or self.default_model or models[0].name
        for model in models:
            if wanted in (model.name, model.model):
                return model
        raise NotFound(
            f"Model {wanted!r} is not configured in this project. Configured: "
            f"{', '.join(model.name for model in models)}.",
            details={"model": wanted},
        )


class Strategy(_Section):
    """A named embedding or retrieval strategy: a type and its settings."""

    name: Name
    type: str = ""
    config: dict[str, Any] = {}
    priority: int = 0
    default: bool = False


class Database(_Section):
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


class Parser(_Section):
    """How files of some kinds are read and cut."""

    type: str = "auto"
    config: dict[str, Any] = {}
    file_extensions: list[str] = []
    file_include_patterns: list[str] = []
    mime_types: list[str] = []
    priority: int = 50


class Extractor(_Section):
    """What metadata is drawn from the text."""

    type: str
    config: dict[str, Any] = {}
    priority: int = 50


class DataProcessingStrategy(_Section):
    """How a dataset's files become chunks."""

    name: Name
    description: str | None = None
    parsers: list[Parser | str] = []
    extractors: list[Extractor | str] = []


class Rag(_Section):
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
        """Processing strategies a dataset may name: the configured ones, or the built-in one."""
        return [strategy.name for strategy in self.data_processing_strategies] or [UNIVERSAL_STRATEGY]

    def processing_strategy(self, name: str) -> DataProcessingStrategy:
        """Raises `NotFound` when neither configured nor built in."""
        for strategy in self.data_processing_strategies:
            if strategy.name == name:
                return strategy
        if name == UNIVERSAL_STRATEGY:
            return DataProcessingStrategy(name=UNIVERSAL_STRATEGY, parsers=[Parser(type="auto")])
        raise NotFound(f"Data processing strategy {name!r} not found. Available: {', '.join(self.strategy_names())}.")


class DatasetConfig(_Section):
    """A named set of files that go into one database."""

    name: Name
    data_processing_strategy: str = UNIVERSAL_STRATEGY
    database: str


class ProjectConfig(_Section):
    """The whole of llamafarm.yaml."""

    version: Literal["v1"] = "v1"
    name: Name
    namespace: Name
    runtime: Runtime
    prompts: list[PromptSet | PromptMessage] = []
    rag: Rag = Rag()
    datasets: list[DatasetConfig] = []

    @model_validator(mode="after")
    def _references_exist(self) -> ProjectConfig:
        seen: set[str] = set()
        for dataset in self.datasets:
            if dataset.name.lower() in seen:
                raise ValueError(f"two datasets are named {dataset.name!r} (names are compared without case)")
            seen.add(dataset.name.lower())
        databases = {database.name for database in self.rag.databases}
        for dataset in self.datasets:
            if databases and dataset.database not in databases:
                raise ValueError(
                    f"dataset {dataset.name!r} names the database {dataset.database!r}, which is not configured"
                )
        known = {entry.name for entry in self.prompts if isinstance(entry, PromptSet)}
        for model in self.runtime.models:
            for prompt in model.prompts:
                if prompt not in known:
                    raise ValueError(
                        f"runtime.models[{model.name}].prompts names {prompt!r}, which prompts does not hold"
                    )
        return self

    @classmethod
    def parse(cls, raw: Any) -> ProjectConfig:
        """Reads a configuration from plain data.

        Raises:
            ValidationFailed: Names every wrong field by its path, with the reason.
        """
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            reasons = {
                ".".join(str(part) for part in item["loc"]) or "config": item["msg"].removeprefix("Value error, ")
                for item in error.errors(include_url=False, include_context=False, include_input=False)
            }
            summary = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
            raise ValidationFailed(f"Invalid configuration: {summary}.", details=reasons) from None

    def plain(self) -> dict[str, Any]:
        """The configuration as plain data, without fields nobody set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def dataset(self, name: str) -> DatasetConfig:
        """Raises `NotFound` when the project has no such dataset."""
        for dataset in self.datasets:
            if dataset.name == name:
                return dataset
        raise NotFound(f"Dataset {name!r} not found in project {self.namespace}/{self.name}.")

    def prompt_messages(self, model: RuntimeModel) -> Sequence[PromptMessage]:
        """The configured messages for a model: the sets it names, or all of them if it names none."""
        messages: list[PromptMessage] = []
        for entry in self.prompts:
            if isinstance(entry, PromptMessage):
                messages.append(entry)
            elif not model.prompts or entry.name in model.prompts:
                messages.extend(entry.messages)
        return messages
