"""The sections `runtime` and `prompts` of llamafarm.yaml: which models a project talks to, and how they are addressed.

Both runtime forms of LlamaFarm's documents are read: a single model (`runtime.provider`, `runtime.model`)
and a list (`runtime.models[]` with `runtime.default_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from llamastead_server.domain.config_section import Name, Section
from llamastead_server.domain.errors import NotFound


class PromptMessage(Section):
    """A configured message that precedes the conversation."""

    role: Literal["system", "user", "assistant"] = "system"
    content: str


class PromptSet(Section):
    """A named list of messages that models refer to."""

    name: Name
    messages: list[PromptMessage]


class ConfiguredTool(Section):
    """A function that a model is offered whenever a request brings none; texts may hold `{{name}}` places."""

    type: Literal["function"] = "function"
    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class RuntimeModel(Section):
    """One model a project can use."""

    name: str = Field(min_length=1, max_length=200)
    provider: str = "llamastead"
    model: str = Field(min_length=1, max_length=500)
    description: str | None = None
    base_url: str | None = None
    api_key: str | None = Field(None, repr=False)
    prompts: list[str] = []
    model_api_parameters: dict[str, Any] = {}
    tools: list[ConfiguredTool] = Field([], max_length=128)
    tool_call_strategy: Literal["native_api", "prompt_based"] = "native_api"
    keep_loaded: bool = False
    rag_enabled: bool | None = None
    target_database: str | None = None


class Runtime(Section):
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
