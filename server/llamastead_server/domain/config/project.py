"""The shape of llamafarm.yaml: what a project is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from pydantic import Field, ValidationError

from llamastead_server.domain.config import errors as config_errors
from llamastead_server.domain.config import references as config_references
from llamastead_server.domain.config.mcp import Mcp
from llamastead_server.domain.config.processing import UNIVERSAL_STRATEGY
from llamastead_server.domain.config.rag import Rag
from llamastead_server.domain.config.runtime import Prompt, PromptMessage, Runtime, RuntimeModel
from llamastead_server.domain.config.section import MOST_ENTRIES, Name, Section, Url
from llamastead_server.domain.config.strategies import Components
from llamastead_server.domain.errors import NotFound, ValidationFailed

MOST_DATASETS = 10_000


class DatasetConfig(Section):
    """A named set of files that go into one database.

    `files` are the hashes that LlamaFarm's older files list; which files a dataset holds is recorded elsewhere.
    """

    name: Name
    data_processing_strategy: str = UNIVERSAL_STRATEGY
    database: str
    auto_process: bool | None = None
    files: list[str] = []


class Environment(Section):
    """Another server that LlamaFarm's command line deploys to."""

    server_url: Url
    deploy_models: bool = True
    deploy_data: bool = False


class Deployment(Section):
    """Where LlamaFarm's command line puts models when it deploys."""

    model_dir: str | None = None


class ProjectConfig(Section):
    """The whole of llamafarm.yaml.

    `schema`, `voice`, `memory`, `environments` and `deployment` are for other LlamaFarm programs: they are checked for
    their form and kept as they are. `schema` names Python code, which is never run. `components` is what `rag` may
    refer to beside its own components.
    """

    version: Literal["v1"] = "v1"
    name: Name
    namespace: Name
    runtime: Runtime
    prompts: list[Prompt] = Field([], max_length=MOST_ENTRIES)
    rag: Rag = Rag()
    datasets: list[DatasetConfig] = Field([], max_length=MOST_DATASETS)
    mcp: Mcp = Mcp()
    environments: dict[str, Environment] = {}
    deployment: Deployment | None = None
    voice: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    components: Components | None = None
    output_schema: str | None = Field(None, alias="schema")

    @classmethod
    def parse(cls, raw: Any) -> ProjectConfig:
        """Reads a configuration from plain data.

        Raises:
            ValidationFailed: Names every wrong field by its path, with the reason.
        """
        try:
            config = cls.model_validate(raw, context=raw.get("components") if isinstance(raw, Mapping) else None)
            wrong = dict(islice(config_references.problems(config), config_errors.MOST_NAMED))
        except ValidationError as error:
            wrong = config_errors.reasons(error, raw)
        if wrong:
            raise ValidationFailed(config_errors.summary(wrong), details=wrong)
        return config

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
