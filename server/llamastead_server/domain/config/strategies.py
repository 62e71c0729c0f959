"""Embedding and retrieval strategies of llamafarm.yaml, and the components that databases share."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator

from llamastead_server.domain.config.processing import NamedParser
from llamastead_server.domain.config.retrieval_settings import DEFAULT_TYPE, TYPES, Settings, check_type, settings
from llamastead_server.domain.config.section import MOST_ENTRIES, Name, Section, unconditional

EMBEDDERS = (
    "OllamaEmbedder", "OpenAIEmbedder", "HuggingFaceEmbedder", "SentenceTransformerEmbedder", "UniversalEmbedder",
)  # fmt: skip
"""Types of embedders; all embed by a sentence-transformers model inside this server."""

_S = TypeVar("_S", "EmbeddingStrategy", "RetrievalStrategy", NamedParser)
_EFFECTIVE = frozenset({"model", "model_name", "dimension", "normalize", "normalize_embeddings"})
_MODEL: TypeAdapter[str] = TypeAdapter(Annotated[str, Field(strict=True, min_length=1, max_length=200)])
_DIMENSION: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=65_536)])


class RetrievalStrategy(Section):
    """How a database is searched: a type and its settings."""

    name: Name
    type: str = ""
    config: dict[str, Any] = {}
    default: bool = False

    @field_validator("type")
    @classmethod
    def _is_built(cls, value: str) -> str:
        return check_type(value) if value else value

    @field_validator("config")
    @classmethod
    def _fits_the_type(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        # Without a type that is known there is nothing to judge by.
        if "type" in info.data and "name" in info.data:
            settings(_kind(info.data["type"], info.data["name"]), value)
        return value

    @property
    def kind(self) -> str:
        """Its type: the one it says, else its name if that is one, else `hybrid`."""
        return _kind(self.type, self.name)

    @property
    def settings(self) -> Settings:
        """Its settings, checked."""
        return settings(self.kind, self.config)


class EmbeddingStrategy(Section):
    """How a database's chunks become vectors."""

    name: Name
    type: str = ""
    config: dict[str, Any] = {}
    priority: int = 0
    default: bool = False
    condition: None = None

    @field_validator("condition", mode="before")
    @classmethod
    def _is_absent(cls, value: object) -> None:
        unconditional(value)

    @field_validator("type")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value and value not in EMBEDDERS:
            raise ValueError(f"the type {value!r} is not one of {', '.join(EMBEDDERS)}")
        return value

    @field_validator("config")
    @classmethod
    def _right(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in ("model", "model_name"):
            if value.get(key) is not None:
                _MODEL.validate_python(value[key])
        if value.get("dimension") is not None:
            _DIMENSION.validate_python(value["dimension"])
        if any(value.get(key) is False for key in ("normalize", "normalize_embeddings")):
            raise ValueError("vectors always have length 1: leave `normalize` out")
        return value

    @property
    def model(self) -> str | None:
        """The model it names."""
        return self.config.get("model") or self.config.get("model_name") or None

    @property
    def dimension(self) -> int | None:
        """The length of vectors it expects."""
        return self.config.get("dimension")

    @property
    def ineffective(self) -> list[str]:
        """Its settings that have no effect, because the server embeds by itself."""
        return sorted(key for key, value in self.config.items() if key not in _EFFECTIVE and value is not None)


class Defaults(Section):
    """The components of databases that say nothing themselves."""

    embedding_strategy: str | None = None
    retrieval_strategy: str | None = None


class Components(Section):
    """What databases and processing strategies may refer to by name."""

    embedding_strategies: list[EmbeddingStrategy] = Field([], max_length=MOST_ENTRIES)
    retrieval_strategies: list[RetrievalStrategy] = Field([], max_length=MOST_ENTRIES)
    parsers: list[NamedParser] = Field([], max_length=MOST_ENTRIES)
    defaults: Defaults = Defaults()

    @field_validator("embedding_strategies", "retrieval_strategies", "parsers", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        """A mapping of names is a list of named entries too."""
        if isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values()):
            return [{"name": name, **entry} for name, entry in value.items()]
        return value

    @field_validator("embedding_strategies", "retrieval_strategies", "parsers")
    @classmethod
    def _differ(cls, entries: list[_S]) -> list[_S]:
        names = [entry.name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two entries have the name {name!r}")
        return entries

    def embedding(self, name: str) -> EmbeddingStrategy:
        """Raises `ValueError` when there is none of that name."""
        return _named("embedding_strategies", self.embedding_strategies, name)

    def retrieval(self, name: str) -> RetrievalStrategy:
        """Raises `ValueError` when there is none of that name."""
        return _named("retrieval_strategies", self.retrieval_strategies, name)

    def parser(self, name: str) -> NamedParser:
        """Raises `ValueError` when there is none of that name."""
        return _named("parsers", self.parsers, name)

    def with_others(self, others: Components) -> Components:
        """These components, and of the others those whose names are free."""
        return Components(
            embedding_strategies=_joined(self.embedding_strategies, others.embedding_strategies),
            retrieval_strategies=_joined(self.retrieval_strategies, others.retrieval_strategies),
            parsers=_joined(self.parsers, others.parsers),
            defaults=Defaults(
                embedding_strategy=self.defaults.embedding_strategy or others.defaults.embedding_strategy,
                retrieval_strategy=self.defaults.retrieval_strategy or others.defaults.retrieval_strategy,
            ),
        )


def _kind(type_name: str, name: str) -> str:
    return type_name or (name if name in TYPES else DEFAULT_TYPE)


def _joined(entries: list[_S], others: list[_S]) -> list[_S]:
    names: set[str] = {entry.name for entry in entries}
    return entries + [entry for entry in others if entry.name not in names]


def _named(key: str, entries: list[_S], name: str) -> _S:
    for entry in entries:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in entries) or "none"
    raise ValueError(f"{name!r} is not one of rag.components.{key}: {known}")
