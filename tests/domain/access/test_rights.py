from __future__ import annotations

import pytest

from llamastead_server.domain.access.rights import Principal, ProjectPattern, Scope
from llamastead_server.domain.errors import InvalidRequest, PermissionDenied
from llamastead_server.domain.names import ProjectRef


@pytest.mark.parametrize("held", Scope)
@pytest.mark.parametrize("needed", Scope)
def test_each_scope_includes_the_ones_before_it(held: Scope, needed: Scope) -> None:
    caller = Principal("token:x", held)
    if held >= needed:
        caller.demand_scope(needed)
    else:
        with pytest.raises(PermissionDenied, match=f"`{needed}`"):
            caller.demand_scope(needed)


@pytest.mark.parametrize("word", ["", "reader", "READ ", "0", "admin,read"])
def test_a_scope_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequest):
        Scope.parse(word)


@pytest.mark.parametrize("text", ["acme/bot", "acme/*"])
def test_a_pattern_reads_back_as_it_was_written(text: str) -> None:
    assert str(ProjectPattern.parse(text)) == text


@pytest.mark.parametrize("text", ["", "acme", "*", "*/*", "*/bot", "acme/", "/bot", "acme/b*", "acme/bot/x", "../x"])
def test_a_pattern_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        ProjectPattern.parse(text)


def test_a_project_covers_itself_and_a_namespace_its_projects() -> None:
    one, every = ProjectPattern("acme", "bot"), ProjectPattern("acme")
    others = [("acme", "other"), ("acme2", "bot"), ("", ""), ("acme", "")]
    assert one.covers("acme", "bot")
    assert not any(one.covers(*other) for other in others)
    assert every.covers("acme", "bot")
    assert every.covers("acme", "other")
    assert not every.covers("acme2", "bot")


def test_a_restricted_caller_is_held_to_its_projects() -> None:
    caller = Principal("token:x", Scope.WRITE, ProjectPattern("acme", "bot"))
    caller.demand_project("acme", "bot")
    caller.demand_namespace("acme")
    assert caller.may_use(ProjectRef("acme", "bot"))
    assert not caller.may_use(ProjectRef("acme", "other"))
    for refused in (
        lambda: caller.demand_project("acme", "other"),
        lambda: caller.demand_namespace("other"),
        caller.demand_all_projects,
    ):
        with pytest.raises(PermissionDenied, match="acme/bot"):
            refused()


def test_an_unrestricted_caller_may_use_all_projects() -> None:
    caller = Principal("token:x", Scope.READ)
    caller.demand_project("any", "thing")
    caller.demand_namespace("any")
    caller.demand_all_projects()
