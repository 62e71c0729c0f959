"""Settings of the GPU engine."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.settings import Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"cache": "fp8"},
        {"chunk": 1000},
        {"chunk": 0},
        {"cache_tokens": 300},
        {"slots": 0},
        {"slots": 257},
        {"margin": -1},
        {"split": []},
        {"draft_tokens": 8},
        {"draft_model": "a", "ngram_draft": True},
        {"loras": [{"path": ""}]},
        {"loras": [{"path": "a", "scale": float("nan")}]},
        {"context_lenght": 4096},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GpuSettings.model_validate(wrong)


def test_they_survive_the_way_to_the_worker() -> None:
    settings = GpuSettings.model_validate(
        {"split": [10.5, 20], "loras": [{"path": "a", "scale": 0.5}], "draft_model": "small", "cache": "q6"}
    )
    assert GpuSettings.model_validate_json(settings.model_dump_json()) == settings
    assert settings.proposed_tokens == 4
    assert GpuSettings().proposed_tokens == 0


def test_the_environment_sets_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GPU_SPLIT": "10.5,20", "GPU_CACHE": "q8", "GPU_SLOTS": "64", "CONTEXT_LENGTH": "4096"}.items():
        monkeypatch.setenv(f"LLAMASTEAD_{name}", value)
    defaults = Settings(_env_file=None).gpu_defaults  # type: ignore[call-arg]
    assert (defaults.split, defaults.cache, defaults.slots, defaults.context_length) == ((10.5, 20.0), "q8", 64, 4096)
    monkeypatch.setenv("LLAMASTEAD_GPU_SPLIT", "10,much")
    with pytest.raises(ValidationError, match=r"(?i)gpu_split"):
        Settings(_env_file=None)  # type: ignore[call-arg]
