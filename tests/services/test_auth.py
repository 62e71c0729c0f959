from __future__ import annotations

import pytest

from llamastead_server.domain.access.tokens import Tokens
from llamastead_server.domain.errors import Unauthenticated
from llamastead_server.services.auth import BearerAuth
from tests.fake_clock import FakeClock
from tests.gateway import NoTokens


def identify(*values: str, tokens: tuple[str, ...] = ("one", "two", "zwölf")) -> str:
    return BearerAuth(Tokens(NoTokens(), FakeClock(), fixed=tokens)).identify(values, "10.0.0.1").id


@pytest.mark.parametrize("value", ["Bearer one", "bearer two", "Bearer  one ", "BEARER zwölf"])
def test_a_known_token_passes(value: str) -> None:
    assert identify(value).startswith("token-")


@pytest.mark.parametrize(
    "values",
    [(), ("",), ("one",), ("Bearer",), ("Bearer ",), ("Bearer on",), ("Bearer one2",), ("Basic one",)],
)
def test_anything_else_does_not(values: tuple[str, ...]) -> None:
    with pytest.raises(Unauthenticated):
        identify(*values)


def test_a_header_sent_twice_does_not_pass() -> None:
    with pytest.raises(Unauthenticated):
        identify("Bearer one", "Bearer one")


def test_who_calls_is_told_apart_without_giving_the_token_away() -> None:
    assert identify("Bearer one") != identify("Bearer two")
    assert "one" not in identify("Bearer one").removeprefix("token-")


def test_without_any_token_callers_are_known_by_their_address() -> None:
    assert identify(tokens=()) == identify("Bearer whatever", tokens=()) == "address:10.0.0.1"
