from __future__ import annotations

from typing import Any

import pytest

from llamastead_server.domain.config import ProjectConfig
from llamastead_server.domain.errors import NotFound, ValidationFailed

BASE: dict[str, Any] = {"version": "v1", "name": "bot", "namespace": "org", "runtime": {"model": "llama"}}


def test_both_runtime_forms_are_read() -> None:
    single = ProjectConfig.parse({**BASE, "runtime": {"provider": "ollama", "model": "llama3.2:3b"}}).runtime
    assert single.select(None).model == "llama3.2:3b"
    assert single.select(None).provider == "ollama"
    models = [{"name": "fast", "provider": "ollama", "model": "a"}, {"name": "smart", "model": "b"}]
    several = ProjectConfig.parse({**BASE, "runtime": {"models": models, "default_model": "smart"}}).runtime
    assert several.select(None).model == "b"
    assert several.select("fast").model == several.select("a").model == "a"
    with pytest.raises(NotFound, match="fast, smart"):
        several.select("other")


def test_keys_nobody_knows_survive() -> None:
    raw = {**BASE, "mcp": {"servers": [{"name": "x", "transport": "stdio"}]}, "voice": {"a": 1}}
    assert ProjectConfig.parse(raw).plain() == raw


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "v9"}, "version"),
        ({"runtime": {}}, "runtime"),
        ({"runtime": {"models": [{"name": "x"}]}}, "runtime.models.0.model"),
        ({"runtime": {"models": [{"name": "x", "model": "y"}] * 2}}, "runtime"),
        ({"runtime": {"models": [{"name": "x", "model": "y"}], "default_model": "z"}}, "runtime"),
        ({"rag": {"databases": [{"name": "a"}, {"name": "a"}]}}, "rag"),
        ({"rag": {"databases": [{"name": "a"}], "default_database": "b"}}, "rag"),
        (
            {
                "rag": {
                    "databases": [
                        {"name": "a", "retrieval_strategies": [{"name": "x"}], "default_retrieval_strategy": "y"}
                    ]
                }
            },
            "rag.databases.0",
        ),
        ({"datasets": [{"name": "D", "database": "a"}, {"name": "d", "database": "a"}]}, "config"),
        ({"rag": {"databases": [{"name": "a"}]}, "datasets": [{"name": "d", "database": "b"}]}, "config"),
        ({"runtime": {"models": [{"name": "x", "model": "y", "prompts": ["none"]}]}}, "config"),
        ({"namespace": "../x"}, "namespace"),
    ],
    ids=str,
)
def test_what_breaks_a_rule_is_named_by_its_path(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationFailed) as raised:
        ProjectConfig.parse({**BASE, **change})
    assert field in raised.value.details


@pytest.mark.parametrize("raw", [None, [], "text", 5])
def test_what_is_no_mapping_is_refused(raw: Any) -> None:
    with pytest.raises(ValidationFailed):
        ProjectConfig.parse(raw)
