from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.adapters.milvus_filter import ENCODED_LENGTH, document_type, encode, filterable, render
from llamastead_server.domain.errors import InvalidRequest
from llamastead_server.domain.ports import Chunk

HARMLESS = set(string.ascii_letters + string.digits + " ._-%+")


@given(st.text())
def test_encoded_text_holds_nothing_an_expression_gives_a_meaning_to(text: str) -> None:
    assert set(encode(text)) <= HARMLESS
    assert len(encode(text)) <= ENCODED_LENGTH


@given(st.text(), st.text())
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (encode(one) == encode(other)) == (one == other)


def test_a_text_that_looks_encoded_is_not_mistaken_for_one() -> None:
    long = "é" * 1000
    assert encode("%22") != encode('"')
    assert encode(encode(long)) != encode(long)
    assert encode("\udc80") != encode("?")


def test_datasets_to_be_left_out_can_break_out_of_nothing() -> None:
    assert render({"page": 2}, ["papers"]) == '(page == 2) and dataset not in ["papers"]'
    hostile = render({}, ['x"] or id != "', "b\n"])
    assert hostile == 'dataset not in ["x%22%5D or id %21%3D %22", "b%0A"]'


@pytest.mark.parametrize(
    ("filters", "expression"),
    [
        ({}, ""),
        ({"filename": "a.pdf", "page": 2}, '(filename == "a.pdf") and (page == 2)'),
        ({"source": 'x" or id != "'}, '(filename == "x%22 or id %21%3D %22")'),
        ({"document_id": "ab"}, '(file_hash == "ab")'),
        ({"page": 2.0}, "(page == 2)"),
        ({"page": [1, 2, 2]}, "(page == 1 or page == 2)"),
        ({"page": 2.5}, '(id == "")'),
        ({"page": "2"}, '(id == "")'),
        ({"page": -1}, '(id == "")'),
        ({"page": True}, '(id == "")'),
        ({"filename": 3}, '(id == "")'),
        ({"author": "Li"}, '(meta["author"] == "Li" or json_contains(meta["author"], "Li"))'),
        ({"year": 2024.0}, '(meta["year"] == 2024 or json_contains(meta["year"], 2024))'),
        (
            {"ok": [True, "yes"]},
            '(meta["ok"] == true or json_contains(meta["ok"], true) or '
            'meta["ok"] == "yes" or json_contains(meta["ok"], "yes"))',
        ),
    ],
)
def test_filters_become_an_expression(filters: Mapping[str, Any], expression: str) -> None:
    assert render(filters) == expression


@pytest.mark.parametrize(
    "filters",
    [
        {'bad" key': 1},
        {"": 1},
        {"a]": 1},
        {"k": None},
        {"k": {"nested": 1}},
        {"k": []},
        {"k": [["x"]]},
        {"k": float("nan")},
        {"page": float("inf")},
        {"k": 10**400},
        {"k": ["x"] * 101},
        {f"k{i}": 1 for i in range(21)},
    ],
    ids=lambda filters: str(filters)[:30],
)
def test_what_can_not_be_filtered_by_is_refused(filters: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="metadata_filters"):
        render(filters)


def test_only_plain_values_under_good_names_are_indexed() -> None:
    metadata = {"a": "x\n", "b": 1, "c": True, "d": [1, '"', {}], "e": {}, "f": None, 'g"': 1, "h": float("nan")}
    assert filterable(metadata) == {"a": "x%0A", "b": 1, "c": True, "d": [1, "%22"]}


def test_the_document_type_is_the_extension_unless_the_metadata_says_otherwise() -> None:
    chunk = Chunk("1", "d", "h", "Report.PDF", 0, "text")
    assert document_type(chunk) == "pdf"
    assert document_type(Chunk("1", "d", "h", "x.pdf", 0, "text", metadata={"document_type": "law"})) == "law"
