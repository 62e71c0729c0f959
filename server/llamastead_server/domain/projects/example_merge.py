"""What a project needs of an example's configuration to take its datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llamastead_server.domain.config.processing import DataProcessingStrategy
from llamastead_server.domain.config.project import DatasetConfig, ProjectConfig
from llamastead_server.domain.config.rag import Database
from llamastead_server.domain.config.section import Section
from llamastead_server.domain.errors import Conflict, InvalidRequest, NotFound

_SEARCHING = {"retrieval_strategies", "default_retrieval_strategy", "retrieval_strategy"}


@dataclass(slots=True)
class Additions:
    """What a merge adds to a project; all else it needs is there already."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    databases: list[Database] = field(default_factory=list)
    strategies: list[DataProcessingStrategy] = field(default_factory=list)

    def added_to(self, config: ProjectConfig) -> ProjectConfig:
        """The configuration with the additions."""
        rag = config.rag
        databases = [*rag.databases, *self.databases]
        strategies = [*rag.data_processing_strategies, *self.strategies]
        return _changed(config, [*config.datasets, *self.datasets], databases, strategies)

    def taken_from(self, config: ProjectConfig) -> ProjectConfig:
        """The configuration without the additions, but for what somebody else has begun to use meanwhile."""
        datasets = [entry for entry in config.datasets if not _among(entry, self.datasets)]
        used = {name for dataset in datasets for name in _route(dataset)}
        rag = config.rag
        databases = [entry for entry in rag.databases if entry.name in used or not _among(entry, self.databases)]
        strategies = [
            entry
            for entry in rag.data_processing_strategies
            if entry.name in used or not _among(entry, self.strategies)
        ]
        return _changed(config, datasets, databases, strategies)


def additions(
    config: ProjectConfig, example: ProjectConfig, datasets: Sequence[DatasetConfig], *, include_strategies: bool
) -> Additions:
    """What of an example a project lacks for some of the example's datasets.

    Args:
        config: The project.
        example: The example.
        datasets: Its datasets, each with its strategy and its database.
        include_strategies: Whether strategies and databases may be added.

    Raises:
        Conflict: The project has something of the same name that differs.
        InvalidRequest: Something is missing and may not be added.
    """
    found = Additions()
    for dataset in datasets:
        existing = next((entry for entry in config.datasets if entry.name.lower() == dataset.name.lower()), None)
        if existing is None:
            found.datasets.append(dataset)
        elif _route(existing) != _route(dataset):
            raise Conflict(
                f"The project has a dataset {existing.name!r} of its own, which goes by the strategy "
                f"{existing.data_processing_strategy!r} into the database {existing.database!r}. Rename one of them.",
                details={"dataset": existing.name},
            )
        database = example.rag.database(dataset.database)
        if _lacks("database", config.rag.databases, database, found.databases, include_strategies):
            found.databases.append(database)
        strategy = _configured(example, dataset.data_processing_strategy)
        if strategy is None:
            _check_built_in(config, dataset.data_processing_strategy)
        elif _lacks("strategy", config.rag.data_processing_strategies, strategy, found.strategies, include_strategies):
            _check_unused(config, strategy.name)
            found.strategies.append(strategy)
    return found


def _lacks(
    kind: str,
    own: Sequence[Database | DataProcessingStrategy],
    wanted: Database | DataProcessingStrategy,
    added: Sequence[Database | DataProcessingStrategy],
    include_strategies: bool,
) -> bool:
    existing = next((entry for entry in own if entry.name == wanted.name), None)
    if existing is None:
        if not include_strategies:
            raise InvalidRequest(
                f"The project has no {kind} {wanted.name!r}. Configure it, or set include_strategies.",
                details={"field": "include_strategies", kind: wanted.name},
            )
        return not _among(wanted, added)
    if include_strategies and _essence(existing) != _essence(wanted):
        raise Conflict(
            f"The project has a {kind} {wanted.name!r} of its own, which differs from the example's. Rename it, or "
            "leave out include_strategies to use it as it is.",
            details={kind: wanted.name},
        )
    return False


def _configured(config: ProjectConfig, name: str) -> DataProcessingStrategy | None:
    return next((entry for entry in config.rag.data_processing_strategies if entry.name == name), None)


def _check_built_in(config: ProjectConfig, name: str) -> None:
    if _configured(config, name) is not None:
        raise Conflict(
            f"The project has a strategy {name!r} of its own, but the example means the built-in one. Rename it.",
            details={"strategy": name},
        )
    try:
        config.rag.processing_strategy(name)
    except NotFound as error:
        raise InvalidRequest(error.message, details={"strategy": name}) from None


def _check_unused(config: ProjectConfig, name: str) -> None:
    """Adding a strategy of a built-in one's name would change how datasets that name it are processed."""
    if any(dataset.data_processing_strategy == name for dataset in config.datasets):
        raise Conflict(
            f"Datasets of the project use the built-in strategy {name!r}, but the example has its own of that name. "
            "Configure the strategy in the project first.",
            details={"strategy": name},
        )


def _route(dataset: DatasetConfig) -> tuple[str, str]:
    return dataset.data_processing_strategy, dataset.database


def _essence(section: Section) -> dict[str, Any]:
    """What decides how data is stored; a project may search the same data in its own way."""
    return section.model_dump(mode="json", exclude=_SEARCHING)


def _among(section: Section, others: Sequence[Section]) -> bool:
    return any(_content(section) == _content(other) for other in others)


def _content(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_unset=True)


def _changed(
    config: ProjectConfig,
    datasets: Sequence[DatasetConfig],
    databases: Sequence[Database],
    strategies: Sequence[DataProcessingStrategy],
) -> ProjectConfig:
    given = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    rag = dict(given.get("rag") or {})
    for key, entries in {"databases": databases, "data_processing_strategies": strategies}.items():
        if entries or key in rag:
            rag[key] = [_content(entry) for entry in entries]
    changed = {**given, "datasets": [_content(dataset) for dataset in datasets]}
    if rag:
        changed["rag"] = rag
    return ProjectConfig.parse(changed)
