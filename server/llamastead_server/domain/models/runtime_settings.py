"""The settings that can be changed while the server runs.

What a request says itself comes before all of them, then what its project configures for the model. Among them, a
model's own parameters come before the settings for all models; and a change comes before what was saved, that before
the environment, and that before the built-in defaults.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llamastead_server.domain.errors import Conflict, InvalidRequest, ModelNotFound
from llamastead_server.domain.models.parameters import (
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    MinP,
    Penalty,
    RepeatPenalty,
    Temperature,
    TokenLimit,
    TopK,
    TopP,
)
from llamastead_server.domain.validation import reasons, summary

_log = logging.getLogger("llamastead.config")

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Rate = Annotated[int, Field(ge=0, le=1_000_000)]

_SIZE = re.compile(r"(?i)(\d{1,6})(?: ?([KMGT])i?B?)?")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size_bytes(text: str) -> int:
    """Reads a size such as `256MB`; units are powers of 1024.

    Raises:
        ValueError: The text is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError("give a size such as 256MB or 2GB")
    return int(found[1]) * _UNITS[(found[2] or "").upper()]


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelParameters(_Settings):
    """Parameters that requests to one model take by default; `None` leaves them to `ModelSettings`."""

    temperature: Temperature | None = None
    max_tokens: TokenLimit | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class ModelSettings(_Settings):
    """What requests to any model take by default."""

    default_model: str | None = Field(None, min_length=1, max_length=500)
    max_tokens: TokenLimit = 100
    temperature: Temperature = DEFAULT_TEMPERATURE
    top_p: TopP = DEFAULT_TOP_P
    top_k: TopK = 0


class SystemSettings(_Settings):
    """Limits of the server; rates are as `domain.access.limits.LimitRules` has them."""

    max_requests_per_minute: Rate | None = None
    max_concurrent_streams: Rate | None = None
    max_batch_operations_per_minute: Rate | None = None
    request_timeout_seconds: float = Field(600.0, gt=0, le=86_400)
    log_level: LogLevel = "INFO"
    cache_size: str = "256MB"

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("cache_size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        size_bytes(value)
        return value

    @property
    def cache_bytes(self) -> int:
        """`cache_size` in bytes."""
        return size_bytes(self.cache_size)


class Configuration(_Settings):
    """All settings that can change at run time."""

    model_settings: ModelSettings = ModelSettings()
    system_settings: SystemSettings = SystemSettings()
    models: dict[str, ModelParameters] = {}


class ConfigurationStore(Protocol):
    """Where a configuration is kept between two runs."""

    async def read(self) -> Mapping[str, Any] | None:
        """What was saved; None if nothing was. Raises `Conflict` when it cannot be read."""
        ...

    async def write(self, content: Mapping[str, Any]) -> None:
        """Saves it, whole or not at all."""
        ...


_Model = TypeVar("_Model", bound=BaseModel)


class RuntimeSettings:
    """The configuration in force.

    Args:
        defaults: What is in force when nothing was changed or saved.
        store: Where it is saved.
        find: Gives the name of an installed model by its name, path or alias; raises `ModelNotFound`.
        apply: Is called with each new configuration, for what does not ask for its settings each time.
    """

    def __init__(
        self,
        defaults: Configuration,
        store: ConfigurationStore,
        find: Callable[[str | None], str],
        apply: Callable[[Configuration], None] = lambda configuration: None,
    ) -> None:
        self._defaults = defaults
        self._current = defaults
        self._store = store
        self._find = find
        self._apply = apply

    @property
    def current(self) -> Configuration:
        """The configuration in force."""
        return self._current

    @property
    def system(self) -> SystemSettings:
        """The limits in force."""
        return self._current.system_settings

    async def restore(self) -> None:
        """Takes up what was saved, at the start.

        Raises:
            Conflict: It was broken by hand; the message says where.
        """
        saved = await self._store.read()
        if saved is None:
            self._put(self._defaults)
            return
        merged = {
            **saved,
            "model_settings": {**self._defaults.model_settings.model_dump(), **_mapping(saved, "model_settings")},
            "system_settings": {**self._defaults.system_settings.model_dump(), **_mapping(saved, "system_settings")},
            "models": _mapping(saved, "models"),
        }
        try:
            restored = Configuration.model_validate(merged)
        except ValidationError as error:
            raise _broken(summary(reasons(error))) from None
        default = restored.model_settings.default_model
        try:
            if default is not None:
                self._find(default)
        except ModelNotFound:
            _log.error("the saved default model %s is not installed any more; another one takes its place", default)
            kept = self._defaults.model_settings.default_model
            models = restored.model_settings.model_copy(update={"default_model": kept})
            restored = restored.model_copy(update={"model_settings": models})
        self._put(restored)

    def update(self, model_settings: Mapping[str, Any], system_settings: Mapping[str, Any]) -> Configuration:
        """Changes the given settings, all or none, and gives the whole.

        Raises:
            InvalidRequest: Names every wrong field.
            ModelNotFound: `default_model` is not installed.
        """
        now = self._current
        models = _changed(now.model_settings, model_settings, "model_settings")
        system = _changed(now.system_settings, system_settings, "system_settings")
        if model_settings.get("default_model") is not None:
            name = self._find(str(models.default_model))
            models = models.model_copy(update={"default_model": name})
        self._put(now.model_copy(update={"model_settings": models, "system_settings": system}))
        return self._current

    def configure_model(self, model: str, parameters: Mapping[str, Any]) -> ModelParameters:
        """Sets the given parameters of one model and gives those.

        Raises:
            InvalidRequest: Names every wrong field, or there is none.
            ModelNotFound: The model is not installed.
        """
        if not parameters:
            raise InvalidRequest(f"Give at least one parameter to set: {', '.join(ModelParameters.model_fields)}.")
        name = self._find(model)
        changed = _changed(self._current.models.get(name, ModelParameters()), parameters, "")
        self._put(self._current.model_copy(update={"models": {**self._current.models, name: changed}}))
        return ModelParameters.model_validate(changed.model_dump(include=set(parameters)))

    async def save(self) -> None:
        """Keeps the configuration in force for the next start."""
        await self._store.write(self._current.model_dump(mode="json", exclude_none=True))

    def reset(self) -> Configuration:
        """Goes back to the defaults; what was saved stays saved."""
        self._put(self._defaults)
        return self._current

    def parameters(self, model: str) -> Mapping[str, Any]:
        """What requests to an installed model take by default, but for their length."""
        settings = self._current.model_settings
        shared = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
        own = self._current.models.get(model, ModelParameters())
        return {**shared, **own.model_dump(exclude_none=True)}

    def token_limit(self, model: str | None) -> int:
        """Most tokens that an answer to a prompt has by default; the model goes by any of its names."""
        own = self._current.models.get(self._find(model), ModelParameters())
        return self._current.model_settings.max_tokens if own.max_tokens is None else own.max_tokens

    def _put(self, configuration: Configuration) -> None:
        self._current = configuration
        self._apply(configuration)


def _mapping(saved: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = saved.get(key) or {}
    if not isinstance(found, Mapping):
        raise _broken(f"{key} must be a mapping")
    return found


def _broken(reason: str) -> Conflict:
    return Conflict(
        f"The saved configuration, settings.yaml in the data folder, is broken: {reason}. Correct or remove it."
    )


def _changed(settings: _Model, change: Mapping[str, Any], prefix: str) -> _Model:
    try:
        return type(settings).model_validate({**settings.model_dump(), **change})
    except ValidationError as error:
        found = {f"{prefix}.{field}" if prefix else field: reason for field, reason in reasons(error).items()}
        raise InvalidRequest(f"Invalid settings: {summary(found)}.", details=found) from None
