from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamastead_server.adapters import yaml_files
from llamastead_server.domain.config.project import ProjectConfig
from llamastead_server.domain.errors import NotFound, ValidationFailed

BASE: dict[str, Any] = {"version": "v1", "name": "bot", "namespace": "org", "runtime": {"model": "llama"}}
FILES = sorted((Path(__file__).parent / "llamafarm_files").glob("*.yaml"))


def with_model(**fields: Any) -> dict[str, Any]:
    return {"runtime": {"models": [{"name": "x", "model": "y", **fields}]}}


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


def test_the_single_form_keeps_its_settings() -> None:
    settings = {"model": "m", "prompts": ["p"], "model_api_parameters": {"temperature": 0}, "rag_enabled": False}
    prompts = [{"name": "p", "messages": [{"content": "Hello."}]}]
    config = ProjectConfig.parse({**BASE, "runtime": settings, "prompts": prompts})
    model = config.runtime.select(None)
    assert (model.name, model.prompts, model.rag_enabled) == ("m", ["p"], False)
    assert model.model_api_parameters == {"temperature": 0}


def test_without_a_default_model_the_marked_one_is_it_else_the_first() -> None:
    models: list[dict[str, Any]] = [{"name": "a", "model": "1"}, {"name": "b", "model": "2"}]
    assert ProjectConfig.parse({**BASE, "runtime": {"models": models}}).runtime.select(None).name == "a"
    models[1]["default"] = True
    assert ProjectConfig.parse({**BASE, "runtime": {"models": models}}).runtime.select(None).name == "b"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_llamafarm_are_read_and_survive_a_round_trip(path: Path) -> None:
    raw = yaml_files.parse(path.read_bytes())
    config = ProjectConfig.parse(raw)
    assert config.plain() == raw
    assert ProjectConfig.parse(config.plain()) == config
    assert config.runtime.select(None).model
    for dataset in config.datasets:
        assert config.rag.database(dataset.database)
        assert config.rag.processing_strategy(dataset.data_processing_strategy)


def test_there_are_files_of_both_generations_of_llamafarm() -> None:
    forms = {"models" in yaml.safe_load(path.read_text())["runtime"] for path in FILES}
    assert forms == {True, False}


def test_keys_nobody_knows_survive() -> None:
    server = {"name": "x", "transport": "stdio", "command": "run", "timeout": 5}
    raw = {**BASE, "mcp": {"servers": [server]}, "voice": {"a": 1}, "unheard_of": [{"b": None}]}
    assert ProjectConfig.parse(raw).plain() == raw


def test_sections_of_other_programs_are_kept_as_they_are_and_never_run() -> None:
    raw = {
        **BASE,
        "schema": "schemas/missing.py::Nothing",
        "memory": {"buffers": [{"size": 3}]},
        "components": {"parsers": [{"name": "p", "type": "auto"}]},
        "voice": {"llm_model": "x", "tts": {"speed": 0.95}},
        "environments": {"edge": {"server_url": "https://edge.example:8443", "deploy_data": True}},
        "deployment": {"model_dir": "models"},
    }
    assert ProjectConfig.parse(raw).plain() == raw


def test_a_null_is_as_good_as_absent() -> None:
    raw = {**BASE, "voice": None, "runtime": {"model": "m", "base_url": None, "prompts": None}}
    assert ProjectConfig.parse(raw).plain() == {**BASE, "runtime": {"model": "m"}}


def test_tools_are_read_in_both_forms() -> None:
    flat = {"type": "function", "name": "clock", "description": "Tells the time.", "parameters": {"type": "object"}}
    nested = {"type": "function", "function": {"name": "dice", "parameters": {"type": "object"}}}
    raw = {**BASE, **with_model(tools=[flat, nested], tool_call_strategy="prompt_based")}
    config = ProjectConfig.parse(raw)
    assert [tool.name for tool in config.runtime.models[0].tools] == ["clock", "dice"]
    assert config.plain() == raw


@pytest.mark.parametrize("address", ["http://localhost:11434/v1", "https://models.example", "http://[::1]:8080"])
def test_addresses_of_other_servers_are_read(address: str) -> None:
    assert ProjectConfig.parse({**BASE, **with_model(base_url=address)}).runtime.models[0].base_url == address


@pytest.mark.parametrize(
    "address", ["localhost:11434", "ftp://x", "file:///etc/passwd", "http://", "http://x:99999", "http://a b", "", 7]
)
def test_what_is_no_address_is_refused(address: Any) -> None:
    with pytest.raises(ValidationFailed) as raised:
        ProjectConfig.parse({**BASE, **with_model(base_url=address)})
    assert list(raised.value.details) == ["runtime.models.0.base_url"]


def test_addresses_of_tool_servers_may_hold_variables() -> None:
    servers = [
        {"name": "a", "transport": "http", "base_url": "${env:TOOLS_URL}"},
        {"name": "b", "transport": "sse", "base_url": "https://${env:HOST}/mcp", "headers": {"X-Key": "${env:KEY}"}},
    ]
    raw = {**BASE, "mcp": {"servers": servers}, **with_model(mcp_servers=["a"])}
    assert ProjectConfig.parse(raw).plain() == raw


def test_a_program_of_another_provider_may_have_parameters_of_its_own() -> None:
    parameters = {"temperature": 0.2, "num_ctx": 8192}
    assert ProjectConfig.parse({**BASE, **with_model(provider="ollama", model_api_parameters=parameters)})
    with pytest.raises(ValidationFailed, match="num_ctx: is not a parameter of chats; use temperature, "):
        ProjectConfig.parse({**BASE, **with_model(model_api_parameters=parameters)})


@pytest.mark.parametrize("outside", [False, True])
def test_databases_use_the_components_they_name_else_those_for_all(outside: bool) -> None:
    components = {
        "embedding_strategies": [{"name": "e1", "config": {"model": "m1"}}, {"name": "e2", "config": {"model": "m2"}}],
        "retrieval_strategies": [{"name": "r1", "type": "BM25Retriever"}],
        "defaults": {"embedding_strategy": "e2", "retrieval_strategy": "r1"},
    }
    own = {"name": "own", "embedding_strategies": [{"name": "e0"}, {"name": "e2", "config": {"model": "mine"}}]}
    other = {"name": "other", "retrieval_strategies": [{"name": "r0", "type": "VectorRetriever"}]}
    databases = [{"name": "plain"}, {"name": "naming", "embedding_strategy": "e1"}, own, other]
    rag = {"databases": databases} | ({} if outside else {"components": components})
    raw = {**BASE, "rag": rag} | ({"components": components} if outside else {})
    config = ProjectConfig.parse(raw)
    assert config.plain() == raw
    found = {}
    for entry in databases:
        database = config.rag.database(entry["name"])
        embedding, retrieval = database.embedding, database.retrieval_strategy(None)
        found[entry["name"]] = (embedding and embedding.model, retrieval and retrieval.name)
    assert found == {"plain": ("m2", "r1"), "naming": ("m1", "r1"), "own": ("mine", "r1"), "other": ("m2", "r0")}


DATABASES = {"rag": {"databases": [{"name": "a"}]}}
EMBEDDING = {"name": "e", "condition": "doc.type == 'code'"}
SERVER = {"name": "s", "transport": "stdio", "command": "run"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "v9"}, "version"),
        ({"runtime": {}}, "runtime"),
        ({"runtime": "llama"}, "runtime"),
        ({"runtime": {"model": "a", "models": [{"name": "x", "model": "y"}]}}, "runtime"),
        ({"runtime": {"models": [{"name": "x"}]}}, "runtime.models.0.model"),
        ({"runtime": {"models": [{"name": "x", "model": "y"}] * 2}}, "runtime.models.1.name"),
        ({"runtime": {"models": [{"name": "x", "model": "y"}], "default_model": "z"}}, "runtime.default_model"),
        (with_model(provider="magic"), "runtime.models.0.provider"),
        (with_model(model_api_parameters={"temperature": 3}), "runtime.models.0.model_api_parameters.temperature"),
        (with_model(model_api_parameters=[1]), "runtime.models.0.model_api_parameters"),
        ({"runtime": {"model": "x", "model_api_parameters": {"top_p": "a"}}}, "runtime.model_api_parameters.top_p"),
        (with_model(prompts=["none"]), "runtime.models.0.prompts.0"),
        (with_model(mcp_servers=["none"]), "runtime.models.0.mcp_servers.0"),
        (with_model(target_database="none"), "runtime.models.0.target_database"),
        (with_model(tool_call_strategy="guess"), "runtime.models.0.tool_call_strategy"),
        (with_model(tools=[{"type": "function"}]), "runtime.models.0.tools.0.name"),
        (with_model(tools=[{"type": "function", "function": {}}]), "runtime.models.0.tools.0.function.name"),
        (with_model(tools=[{"name": "t"}, {"name": "t"}]), "runtime.models.0.tools"),
        (with_model(extra_body={"n_ctx": 0}), "runtime.models.0.extra_body.n_ctx"),
        (with_model(encoder_config={"task": "x"}), "runtime.models.0.encoder_config.task"),
        (with_model(keep_loaded="often"), "runtime.models.0.keep_loaded"),
        ({"prompts": [{"name": "p", "messages": [{"role": "judge", "content": "x"}]}]}, "prompts.0.messages.0.role"),
        ({"prompts": [{"messages": []}]}, "prompts.0.name"),
        ({"prompts": [{"role": "system"}]}, "prompts.0.content"),
        ({"prompts": ["Be brief."]}, "prompts.0"),
        (
            {"prompts": [{"name": "p", "messages": []}, {"content": "x"}, {"name": "p", "messages": []}]},
            "prompts.2.name",
        ),
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
        ({"rag": {"databases": [{"name": "a", "default_retrieval_strategy": "y"}]}}, "rag.databases.0"),
        ({"rag": {"databases": [{"name": "a", "default_embedding_strategy": "y"}]}}, "rag.databases.0"),
        ({"datasets": [{"name": "D", "database": "a"}, {"name": "d", "database": "a"}]}, "datasets.1.name"),
        ({**DATABASES, "datasets": [{"name": "d", "database": "b"}]}, "datasets.0.database"),
        (
            {**DATABASES, "datasets": [{"name": "d", "database": "a", "data_processing_strategy": "none"}]},
            "datasets.0.data_processing_strategy",
        ),
        ({"datasets": [{"name": "d", "database": "a", "auto_process": "x"}]}, "datasets.0.auto_process"),
        (
            {"rag": {"data_processing_strategies": [{"name": "s", "parsers": ["auto", "mine"]}]}},
            "rag.data_processing_strategies.0.parsers.1",
        ),
        (
            {"rag": {"components": {"parsers": [{"name": "mine", "type": "None"}]}}},
            "rag.components.parsers.0.type",
        ),
        ({"rag": {"databases": [{"name": "a"}], "components": {"defaults": {"embedding_strategy": "no"}}}}, "rag"),
        ({"components": {"parsers": [{"name": "mine", "config": {"x": 1}}]}}, "components.parsers.0.config.x"),
        (
            {
                "rag": {
                    **DATABASES["rag"],
                    "data_processing_strategies": [
                        {"name": "s", "extractors": [{"type": "LinkExtractor", "required_for": ["a", "b"]}]}
                    ],
                }
            },
            "rag.data_processing_strategies.0.extractors.0.required_for.1",
        ),
        (
            {
                "rag": {
                    "data_processing_strategies": [
                        {"name": "s", "extractors": [{"type": "LinkExtractor", "condition": "always"}]}
                    ]
                }
            },
            "rag.data_processing_strategies.0.extractors.0.condition",
        ),
        (
            {"rag": {"databases": [{"name": "a", "embedding_strategies": [EMBEDDING]}]}},
            "rag.databases.0.embedding_strategies.0.condition",
        ),
        ({"mcp": {"servers": [{"name": "s", "transport": "stdio"}]}}, "mcp.servers.0"),
        ({"mcp": {"servers": [{"name": "s", "transport": "http", "base_url": "x"}]}}, "mcp.servers.0.base_url"),
        ({"mcp": {"servers": [{**SERVER, "transport": "pigeon"}]}}, "mcp.servers.0.transport"),
        ({"mcp": {"servers": [SERVER, SERVER]}}, "mcp.servers.1.name"),
        ({"mcp": {"servers": [{**SERVER, "env": {"A": 1}}]}}, "mcp.servers.0.env.A"),
        ({"environments": {"edge": {"server_url": "edge"}}}, "environments.edge.server_url"),
        ({"deployment": {"model_dir": 5}}, "deployment.model_dir"),
        ({"voice": "loud"}, "voice"),
        ({"schema": {"type": "object"}}, "schema"),
        ({"namespace": "../x"}, "namespace"),
    ],
    ids=str,
)
def test_what_breaks_a_rule_is_named_by_its_path(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationFailed) as raised:
        ProjectConfig.parse({**BASE, **change})
    assert list(raised.value.details) == [field]
    assert f"{field}: {raised.value.details[field]}" in raised.value.message


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValidationFailed) as raised:
        ProjectConfig.parse({"version": "v9", "name": "bot", "runtime": {"models": [{"name": "x"}]}})
    assert raised.value.details == {
        "version": "should be 'v1'",
        "namespace": "is missing",
        "runtime.models.0.model": "is missing",
    }


def test_secrets_are_kept_but_neither_shown_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    secret = "sk-very-secret"
    server = {"name": "s", "transport": "http", "base_url": f"https://me:{secret}@x", "headers": {"Key": secret}}
    raw = {**BASE, **with_model(api_key=secret), "mcp": {"servers": [server]}}
    with caplog.at_level(logging.DEBUG):
        config = ProjectConfig.parse(raw)
        for wrong in (with_model(api_key=[secret]), with_model(base_url=f"me:{secret}@x"), {"runtime": secret}):
            with pytest.raises(ValidationFailed) as raised:
                ProjectConfig.parse({**raw, **wrong})
            assert secret not in raised.value.message + str(raised.value.details)
    assert secret not in caplog.text
    assert secret not in repr(config.runtime)
    assert config.plain()["runtime"]["models"][0]["api_key"] == secret


@pytest.mark.parametrize("raw", [None, [], "text", 5])
def test_what_is_no_mapping_is_refused(raw: Any) -> None:
    with pytest.raises(ValidationFailed):
        ProjectConfig.parse(raw)


def test_lists_are_bounded_and_an_answer_names_no_more_problems_than_can_be_read() -> None:
    datasets = [{"name": f"d{number}", "database": "none"} for number in range(10_001)]
    with pytest.raises(ValidationFailed, match="datasets: List should have at most 10000 items"):
        ProjectConfig.parse({**BASE, "datasets": datasets})
    databases = [{"name": f"db{number}"} for number in range(1000)]
    with pytest.raises(ValidationFailed) as caught:
        ProjectConfig.parse({**BASE, "rag": {"databases": databases}, "datasets": datasets[1:]})
    assert len(caught.value.details) == 100
    assert len(caught.value.message) < 100_000
    assert "which has: db0, db1" in caught.value.message
    assert " and 950 more" in caught.value.message
    with pytest.raises(ValidationFailed) as caught:
        ProjectConfig.parse({**BASE, "datasets": [{"name": "a"}] * 5000})
    assert len(caught.value.details) == 100


@pytest.mark.parametrize(
    ("rag", "path"),
    [
        (
            {"data_processing_strategies": [{"name": "s"}, {"name": "s", "parsers": ["auto"]}]},
            "rag.data_processing_strategies.1.name: another entry of rag.data_processing_strategies has the name 's'",
        ),
        (
            {"components": {"parsers": [{"name": "p"}, {"name": "p", "type": "UniversalParser"}]}},
            "rag.components.parsers: two entries have the name 'p'",
        ),
    ],
)
def test_of_two_entries_of_one_name_none_is_passed_over(rag: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationFailed, match=path):
        ProjectConfig.parse({**BASE, "rag": rag})


def test_what_should_be_a_mapping_is_said_in_the_words_of_the_file() -> None:
    with pytest.raises(ValidationFailed, match=r"runtime\.models\.0\.extra_body: should be a mapping\."):
        ProjectConfig.parse({**BASE, **with_model(extra_body="x")})
