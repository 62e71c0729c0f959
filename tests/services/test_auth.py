from __future__ import annotations

import pytest

from llamastead_server.domain.errors import Unauthenticated
from llamastead_server.services.auth import OPEN_METHODS, BearerAuth
from llamastead_server.services.metadata import CallMetadata


def authenticate(*values: str) -> str:
    auth = BearerAuth(["one", "two", "zwölf"])
    return auth.authenticate(CallMetadata([("authorization", value) for value in values])).id


@pytest.mark.parametrize("value", ["Bearer one", "bearer two", "Bearer  one ", "BEARER zwölf"])
def test_a_known_token_passes(value: str) -> None:
    assert authenticate(value).startswith("token-")


@pytest.mark.parametrize(
    "values",
    [(), ("",), ("one",), ("Bearer",), ("Bearer ",), ("Bearer on",), ("Bearer one2",), ("Basic one",)],
)
def test_anything_else_does_not(values: tuple[str, ...]) -> None:
    with pytest.raises(Unauthenticated):
        authenticate(*values)


def test_a_header_sent_twice_does_not_pass() -> None:
    with pytest.raises(Unauthenticated):
        authenticate("Bearer one", "Bearer one")


def test_who_calls_is_told_apart_without_giving_the_token_away() -> None:
    assert authenticate("Bearer one") != authenticate("Bearer two")
    assert "one" not in authenticate("Bearer one").removeprefix("token-")


def test_only_methods_that_say_nothing_about_the_machine_are_open() -> None:
    assert {method.rpartition("/")[2] for method in OPEN_METHODS} == {"GetRoot", "GetHealth", "GetLiveness"}
