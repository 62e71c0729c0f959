"""What one section of llamafarm.yaml says of another: names that must exist, differ or be understood."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from llamastead_server.domain.chat.request import Parameters
from llamastead_server.domain.config import errors as config_errors
from llamastead_server.domain.config.runtime import ModelSettings, PromptSet
from llamastead_server.domain.errors import NotFound

if TYPE_CHECKING:
    from llamastead_server.domain.config.project import ProjectConfig

Problem = tuple[str, str]

_MOST_NAMED = 50


def problems(config: ProjectConfig) -> Iterator[Problem]:
    """Paths of the fields at fault, with reasons."""
    runtime = config.runtime
    yield from _twice("runtime.models", [model.name for model in runtime.models])
    if runtime.default_model is not None:
        known = [name for model in runtime.all_models() for name in (model.name, model.model)]
        if runtime.default_model not in known:
            yield _unknown("runtime.default_model", runtime.default_model, "runtime.models", known)
    for path, settings in _models(config):
        yield from _model(path, settings, config)
    sets = {place: entry.name for place, entry in enumerate(config.prompts) if isinstance(entry, PromptSet)}
    yield from _twice("prompts", list(sets.values()), places=list(sets))
    yield from _twice("mcp.servers", [server.name for server in config.mcp.servers])
    strategies = [strategy.name for strategy in config.rag.data_processing_strategies]
    yield from _twice("rag.data_processing_strategies", strategies)
    yield from _twice(
        "datasets", [dataset.name.lower() for dataset in config.datasets], what="name (whatever its case)"
    )
    yield from _datasets(config)
    yield from _processing(config)


def _models(config: ProjectConfig) -> Iterator[tuple[str, ModelSettings]]:
    yield "runtime", config.runtime
    for place, model in enumerate(config.runtime.models):
        yield f"runtime.models.{place}", model


def _model(path: str, model: ModelSettings, config: ProjectConfig) -> Iterator[Problem]:
    sets = {entry.name: None for entry in config.prompts if isinstance(entry, PromptSet)}
    for place, name in enumerate(model.prompts):
        if name not in sets:
            yield _unknown(f"{path}.prompts.{place}", name, "prompts", sets)
    servers = {server.name: None for server in config.mcp.servers}
    for place, name in enumerate(model.mcp_servers or ()):
        if name not in servers:
            yield _unknown(f"{path}.mcp_servers.{place}", name, "mcp.servers", servers)
    databases = [database.name for database in config.rag.databases]
    if model.target_database is not None and model.target_database not in databases:
        yield _unknown(f"{path}.target_database", model.target_database, "rag.databases", databases)
    yield from _parameters(f"{path}.model_api_parameters", model)


def _parameters(path: str, model: ModelSettings) -> Iterator[Problem]:
    given = {name: value for name, value in model.model_api_parameters.items() if value is not None}
    try:
        Parameters.model_validate(given)
    except ValidationError as error:
        for name, reason in config_errors.reasons(error, given).items():
            yield f"{path}.{name}", reason
    if model.provider == "llamastead":
        # Files made for another program may set what only that program knows.
        for name in sorted(set(given) - set(Parameters.model_fields)):
            yield f"{path}.{name}", f"is not a parameter of chats; use {', '.join(Parameters.model_fields)}"


def _datasets(config: ProjectConfig) -> Iterator[Problem]:
    databases = {database.name: None for database in config.rag.databases}
    strategies = set(config.rag.strategy_names())
    for place, dataset in enumerate(config.datasets):
        if databases and dataset.database not in databases:
            yield _unknown(f"datasets.{place}.database", dataset.database, "rag.databases", databases)
        strategy = dataset.data_processing_strategy
        if databases and "data_processing_strategy" in dataset.model_fields_set and strategy not in strategies:
            try:
                config.rag.processing_strategy(strategy)
            except NotFound as error:
                yield f"datasets.{place}.data_processing_strategy", error.message.removesuffix(".")


def _processing(config: ProjectConfig) -> Iterator[Problem]:
    databases = {database.name: None for database in config.rag.databases}
    for place, strategy in enumerate(config.rag.data_processing_strategies):
        path = f"rag.data_processing_strategies.{place}"
        for index, parser in enumerate(strategy.parsers):
            if isinstance(parser, str):
                try:
                    config.rag.parser(parser)
                except ValueError as error:
                    yield f"{path}.parsers.{index}", str(error)
        for index, extractor in enumerate(strategy.extractors):
            for number, name in enumerate([] if isinstance(extractor, str) else extractor.required_for):
                if name not in databases:
                    yield _unknown(f"{path}.extractors.{index}.required_for.{number}", name, "rag.databases", databases)


def _twice(
    section: str, names: Sequence[str], *, places: Sequence[int] | None = None, what: str = "name"
) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name not in seen:
            seen.add(name)
        else:
            place = index if places is None else places[index]
            yield f"{section}.{place}.name", f"another entry of {section} has the {what} {name!r}"


def _unknown(path: str, name: str, section: str, known: Collection[str]) -> Problem:
    names = list(dict.fromkeys(known))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return path, f"{name!r} is not in {section}, which has: {', '.join(names[:_MOST_NAMED]) or 'nothing'}{more}"
