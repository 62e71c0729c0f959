from __future__ import annotations

from typing import Any

import pytest

from llamastead_server.domain.errors import Conflict, InvalidRequest, ModelNotFound
from llamastead_server.domain.models.runtime_settings import Configuration, RuntimeSettings, SystemSettings, size_bytes
from tests.chat_stack import Drawer


def find(name: str | None) -> str:
    if name in (None, "llama", "alias"):
        return "llama"
    raise ModelNotFound(f"Model {name!r} is not installed.")


@pytest.fixture
def drawer() -> Drawer:
    return Drawer()


@pytest.fixture
def applied() -> list[Configuration]:
    return []


@pytest.fixture
def settings(drawer: Drawer, applied: list[Configuration]) -> RuntimeSettings:
    defaults = Configuration(system_settings=SystemSettings(request_timeout_seconds=7))
    return RuntimeSettings(defaults, drawer, find, applied.append)


def test_a_models_own_parameters_come_before_those_for_all(settings: RuntimeSettings) -> None:
    settings.update({"temperature": 0.1, "top_k": 5, "max_tokens": 50}, {})
    settings.configure_model("alias", {"temperature": 0.2, "min_p": 0.3})
    assert settings.parameters("llama") == {"temperature": 0.2, "top_p": 0.9, "top_k": 5, "min_p": 0.3}
    assert settings.parameters("other")["temperature"] == 0.1
    assert settings.token_limit(None) == 50
    settings.configure_model("llama", {"max_tokens": 9})
    assert settings.token_limit("alias") == 9


def test_only_what_was_given_is_changed_and_told(settings: RuntimeSettings) -> None:
    settings.configure_model("llama", {"temperature": 0.2, "top_k": 3})
    updated = settings.configure_model("llama", {"top_k": 4})
    assert updated.model_dump(exclude_none=True) == {"top_k": 4}
    assert settings.current.models["llama"].temperature == 0.2


@pytest.mark.parametrize(
    ("models", "system"),
    [({"temperature": 3}, {}), ({}, {"cache_size": "big"}), ({"unknown": 1}, {}), ({"max_tokens": 1.5}, {})],
)
def test_a_wrong_value_changes_nothing(
    settings: RuntimeSettings, applied: list[Configuration], models: dict[str, Any], system: dict[str, Any]
) -> None:
    before = settings.current
    with pytest.raises(InvalidRequest):
        settings.update({"top_k": 9, **models}, {"max_concurrent_streams": 1, **system})
    assert settings.current == before
    assert applied == []


def test_each_change_is_applied(settings: RuntimeSettings, applied: list[Configuration]) -> None:
    settings.update({"default_model": "alias"}, {"log_level": "debug"})
    assert applied[-1].model_settings.default_model == "llama"
    assert applied[-1].system_settings.log_level == "DEBUG"
    settings.reset()
    assert applied[-1].model_settings.default_model is None
    with pytest.raises(ModelNotFound):
        settings.update({"default_model": "absent"}, {})


async def test_what_is_saved_comes_before_the_environment_and_after_a_change(drawer: Drawer) -> None:
    first = RuntimeSettings(Configuration(), drawer, find)
    first.update({"max_tokens": 11}, {"request_timeout_seconds": 8.0})
    await first.save()
    first.update({"max_tokens": 12}, {})
    second = RuntimeSettings(Configuration(system_settings=SystemSettings(request_timeout_seconds=7)), drawer, find)
    await second.restore()
    assert second.current.model_settings.max_tokens == 11
    assert second.system.request_timeout_seconds == 8
    second.reset()
    assert second.system.request_timeout_seconds == 7
    assert drawer.saved is not None


async def test_settings_that_a_saved_file_lacks_keep_their_defaults(drawer: Drawer, settings: RuntimeSettings) -> None:
    drawer.saved = {"model_settings": {"top_k": 2}}
    await settings.restore()
    assert settings.current.model_settings.top_k == 2
    assert settings.system.request_timeout_seconds == 7


@pytest.mark.parametrize(
    "saved",
    [
        {"model_settings": {"temperature": 9}},
        {"models": 7},
        {"models": {"x": {"y": 1}}},
        {"modles": {"x": {"top_k": 1}}},
    ],
)
async def test_a_file_broken_by_hand_is_refused_at_the_start(
    drawer: Drawer, settings: RuntimeSettings, saved: dict[str, Any]
) -> None:
    drawer.saved = saved
    with pytest.raises(Conflict, match=r"settings\.yaml in the data folder, is broken"):
        await settings.restore()


async def test_a_saved_default_model_that_is_gone_does_not_keep_the_server_down(
    drawer: Drawer, settings: RuntimeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    drawer.saved = {"model_settings": {"default_model": "gone", "top_k": 2}}
    await settings.restore()
    assert settings.current.model_settings.default_model is None
    assert settings.current.model_settings.top_k == 2
    assert "gone" in caplog.text


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512", 512), ("1KB", 1024), ("2 gib", 2 << 30), ("10GB", 10 << 30)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "GB", "1.5GB", "1XB", "9" * 20])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        size_bytes(text)
