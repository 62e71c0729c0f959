from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llamastead_server.domain.config.runtime import RuntimeModel
from llamastead_server.domain.errors import Conflict, ModelNotFound
from llamastead_server.domain.models.generation import ModelCard
from llamastead_server.domain.models.routing import ModelRouter, RemoteModel
from tests.chat_stack import OneModel
from tests.fake_engine import FakeEngine

ENVIRONMENT = {"OPENAI_API_KEY": "sk-1", "LLAMASTEAD_API_TOKENS": "mine", "BAD": "a\nb"}


def find(*hosts: str, **entry: Any) -> ModelCard | RemoteModel:
    router = ModelRouter(OneModel(FakeEngine()), None, hosts, ENVIRONMENT)
    return router.find(RuntimeModel(**{"name": "m", "model": "gpt", **entry}))


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        (["api.openai.com"], None),
        (["API.openai.com:443"], "https://api.openai.com/v1"),
        (["10.0.0.7:8080"], "http://10.0.0.7:8080/v1/"),
        (["models"], "http://models/v1"),
        (["[::1]:9000"], "http://[::1]:9000/v1"),
    ],
)
def test_an_allowed_host_answers(hosts: list[str], url: str | None) -> None:
    found = find(*hosts, provider="openai", base_url=url, api_key="${env:OPENAI_API_KEY}")
    assert isinstance(found, RemoteModel)
    assert (found.model, found.api_key) == ("gpt", "sk-1")
    assert found.base_url == (url or "https://api.openai.com/v1").rstrip("/")
    assert "sk-1" not in repr(found)


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        ([], "http://10.0.0.7:8080/v1"),
        (["10.0.0.7"], "http://10.0.0.7:8080/v1"),
        (["10.0.0.7:8081"], "http://10.0.0.7:8080/v1"),
        (["openai.com"], "https://api.openai.com/v1"),
        (["api.openai.com"], "https://api.openai.com.evil.example/v1"),
        (["api.openai.com:443"], "http://api.openai.com/v1"),
    ],
)
def test_any_other_host_is_never_called_and_the_setting_is_named(hosts: list[str], url: str) -> None:
    with pytest.raises(ModelNotFound, match="LLAMASTEAD_REMOTE_HOSTS"):
        find(*hosts, base_url=url)
    card = find(*hosts, base_url=url, model="fake")
    assert isinstance(card, ModelCard)
    assert card.name == "fake"


def test_a_model_that_is_nowhere_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match=r"not installed\. Installed: fake\.$"):
        find(provider="ollama")


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://", "x/v1", "http://x:99999/v1", "http://[::1/"])
def test_a_base_url_that_is_none_is_refused_with_the_configuration(url: str) -> None:
    with pytest.raises(ValidationError, match="base_url"):
        find("x", base_url=url)


@pytest.mark.parametrize("url", ["http://user:pw@x/v1", "http://x/v1?key=1"])
def test_a_base_url_that_no_api_has_is_the_projects_fault(url: str) -> None:
    with pytest.raises(Conflict, match=r"runtime\.models\[m\]\.base_url"):
        find("x", base_url=url)


@pytest.mark.parametrize("key", ["${env:ABSENT}", "${env:LLAMASTEAD_API_TOKENS}", "${env:BAD}", "é"])
def test_a_key_that_cannot_be_had_is_the_projects_fault_and_stays_unsaid(key: str) -> None:
    with pytest.raises(Conflict, match=r"runtime\.models\[m\]\.api_key") as refused:
        find("x", base_url="http://x/v1", api_key=key)
    assert "mine" not in refused.value.message
    assert "a\nb" not in refused.value.message


def test_an_allowed_host_gets_the_further_fields_of_the_entry() -> None:
    extra = {"n_ctx": 4096, "chat_template_kwargs": {"enable_thinking": False}, "flash_attn": None}
    found = find("api.openai.com", provider="openai", extra_body=extra)
    assert isinstance(found, RemoteModel)
    assert found.extra == {"n_ctx": 4096, "chat_template_kwargs": {"enable_thinking": False}}
    assert isinstance(find(model="fake", extra_body={"model": "other"}), ModelCard)


@pytest.mark.parametrize("extra", [{"messages": []}, {"stream": False, "x": 1}, {"x": "y" * 20_000}], ids=str)
def test_a_field_that_requests_decide_themselves_is_the_projects_fault(extra: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match=r"runtime\.models\[m\]\.extra_body"):
        find("api.openai.com", provider="openai", extra_body=extra)
