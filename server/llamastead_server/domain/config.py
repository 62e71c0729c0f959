"""The shape of llamafarm.yaml: what a project is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from llamastead_server.domain.config_section import Name, Section
from llamastead_server.domain.errors import NotFound, ValidationFailed
from llamastead_server.domain.processing_config import UNIVERSAL_STRATEGY
from llamastead_server.domain.rag_config import Rag
from llamastead_server.domain.runtime_config import PromptMessage, PromptSet, Runtime, RuntimeModel


class DatasetConfig(Section):
    """A named set of files that go into one database."""

    name: Name
    data_processing_strategy: str = UNIVERSAL_STRATEGY
    database: str


class ProjectConfig(Section):
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
