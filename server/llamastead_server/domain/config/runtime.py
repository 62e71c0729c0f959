"""The sections `runtime` and `prompts` of llamafarm.yaml: which models a project talks to, and how they are addressed.

Both runtime forms of LlamaFarm's documents are read: a single model (`runtime.provider`, `runtime.model`)
and a list (`runtime.models[]` with `runtime.default_model`). Every provider means a model of this server, found by
its name or alias, unless the operator allows the host of its `base_url`: then that server is called. What is for
other programs only is checked and kept, as each field says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from llamastead_server.domain.config.section import MOST_ENTRIES, Label, Name, Section, Url
from llamastead_server.domain.errors import NotFound

Provider = Literal["llamastead", "openai", "ollama", "lemonade", "universal"]
Mode = Literal["config_only", "api_replace", "api_supplement"]


class PromptMessage(Section):
    """A configured message that precedes the conversation; `{{name}}` and `{{name | default}}` are filled in."""

    role: Literal["system", "user", "assistant"] = "system"
    content: str


class PromptSet(Section):
    """A named list of messages that models refer to."""

    name: Name
    messages: list[PromptMessage]


def _prompt_form(value: Any) -> str | None:
    if isinstance(value, PromptSet):
        return "set"
    if isinstance(value, PromptMessage):
        return "message"
    if not isinstance(value, Mapping):
        return None
    return "set" if "messages" in value else "message"


Prompt = Annotated[
    Annotated[PromptSet, Tag("set")] | Annotated[PromptMessage, Tag("message")],
    Discriminator(
        _prompt_form,
        custom_error_type="prompt_form",
        custom_error_message="should be a message (role, content) or a set of them (name, messages)",
    ),
]


class Tool(Section):
    """A function that a model is offered whenever a request brings none; texts may hold `{{name}}` places.

    This is LlamaFarm's flat form; OpenAI's has it under `function`.
    """

    type: Literal["function"] = "function"
    name: Label
    description: str = ""
    parameters: dict[str, Any] = {}

    @property
    def function(self) -> Tool:
        """The function itself, in whichever form it was written."""
        return self


class OpenAITool(Section):
    """The same in OpenAI's form."""

    type: Literal["function"]
    function: Tool

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.name


def _tool_form(value: Any) -> str:
    nested = isinstance(value, OpenAITool) or (isinstance(value, Mapping) and "function" in value)
    return "nested" if nested else "flat"


ToolEntry = Annotated[Annotated[Tool, Tag("flat")] | Annotated[OpenAITool, Tag("nested")], Discriminator(_tool_form)]


class ExtraBody(Section):
    """Further fields of the requests to a model on another server, and how LlamaFarm's own runtime loads a model.

    To a host that the operator allows they are sent, those that are not listed here too. For a model installed here
    they have no effect: the server's settings and `load_model` say how it is loaded.
    """

    n_ctx: int | None = Field(None, ge=1)
    n_batch: int | None = Field(None, ge=1)
    n_gpu_layers: int | None = Field(None, ge=-1)
    n_threads: int | None = Field(None, ge=1)
    flash_attn: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    use_mlx: bool | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None


class EncoderConfig(Section):
    """Settings of an encoder model that another program runs; without effect here."""

    max_length: int | None = Field(None, ge=1)
    use_flash_attention: bool = True
    task: Literal["embedding", "classification", "reranking", "ner"] = "embedding"


class BuiltinTools(Section):
    """Which of LlamaFarm's own tools a model may use; without effect here, where there are none."""

    include: list[str] = []


class ModelSettings(Section):
    """What both forms may say of a model.

    Attributes:
        base_url: Server that holds the model; called only if the operator allows its host.
        api_key: Key for that server.
        keep_loaded: Whether the model, once loaded, makes no room for others, until it is unloaded by
            `/api/unload_model`, the project is deleted or the server stops.
        mcp_servers: Names of `mcp.servers`; without effect, for no server of tools is called.
        prompts_mode: What becomes of a request's system messages: `api_replace` (the default) puts them in place of the
            configured prompts, `api_supplement` behind those, and `config_only` leaves them out.
        tools_mode: The same for a request's tools; of two that have one name, the request's is offered.
        instructor_mode: Without effect: `response_format` binds answers to a schema in any mode.
        prompt_format: Without effect.
    """

    provider: Provider = "llamastead"
    description: str | None = None
    base_url: Url | None = None
    api_key: str | None = Field(None, repr=False)
    instructor_mode: str | None = None
    prompt_format: Literal["structured", "unstructured"] | None = None
    model_api_parameters: dict[str, Any] = {}
    extra_body: ExtraBody | None = None
    encoder_config: EncoderConfig | None = None
    prompts: list[str] = Field([], max_length=MOST_ENTRIES)
    prompts_mode: Mode | None = None
    mcp_servers: list[str] | None = Field(None, max_length=MOST_ENTRIES)
    tools: list[ToolEntry] = Field([], max_length=128)
    tools_mode: Mode | None = None
    tool_call_strategy: Literal["native_api", "prompt_based"] = "native_api"
    builtin_tools: BuiltinTools | None = None
    keep_loaded: bool = False
    rag_enabled: bool | None = None
    target_database: str | None = None

    @field_validator("tools")
    @classmethod
    def _tools_differ(cls, tools: list[Tool | OpenAITool]) -> list[Tool | OpenAITool]:
        names = [tool.name for tool in tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tools are named {twice[0]!r}")
        return tools


class RuntimeModel(ModelSettings):
    """One model a project can use."""

    name: str = Field(min_length=1, max_length=200)
    model: str = Field(min_length=1, max_length=500)
    default: bool = False


class Runtime(ModelSettings):
    """Which models a project talks to."""

    model: str | None = Field(None, min_length=1, max_length=500)
    models: list[RuntimeModel] = Field([], max_length=MOST_ENTRIES)
    default_model: str | None = None

    @model_validator(mode="after")
    def _has_a_model(self) -> Runtime:
        if not self.models and not self.model:
            raise ValueError("give either `model`, or `models` with at least one entry")
        if self.models and self.model:
            raise ValueError("give either `model` or `models`, not both: `model` would have no effect")
        return self

    def all_models(self) -> Sequence[RuntimeModel]:
        """Both forms as one list; the single form is an entry named after its model."""
        if self.models:
            return self.models
        assert self.model is not None
        shared = self.model_dump(exclude_unset=True, include=set(RuntimeModel.model_fields))
        return [RuntimeModel.model_validate({**shared, "name": self.model})]

    def select(self, name: str | None) -> RuntimeModel:
        """The entry a request means: by its name or its model string.

        `None` is the default: `default_model`, else the entry marked `default`, else the first.

        Raises:
            NotFound: The project configures no such model.
        """
        models = self.all_models()
        marked = next((model for model in models if model.default), models[0])
        wanted = name or self.default_model or marked.name
        for model in models:
            if wanted in (model.name, model.model):
                return model
        raise NotFound(
            f"Model {wanted!r} is not configured in this project. Configured: "
            f"{', '.join(model.name for model in models)}.",
            details={"model": wanted},
        )
