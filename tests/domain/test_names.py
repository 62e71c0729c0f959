from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastead_server.domain import names
from llamastead_server.domain.errors import InvalidRequest


@pytest.mark.parametrize("name", ["a", "my-org", "Bot_2.1", "9lives", "x" * 100])
def test_ordinary_names_pass(name: str) -> None:
    assert names.segment("project", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-dash", "a/b", "a\\b", "a\x00b", "a b", "é", "con", "NUL.txt", "com1", "a."],
)
def test_hostile_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid project name"):
        names.segment("project", name)


@pytest.mark.parametrize("name", ["x" * 101, "a\n", "../x", "%2e", "a\u202eb"])
def test_names_that_are_too_long_or_hold_other_characters_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid project name"):
        names.segment("project", name)


@given(st.text())
def test_a_name_that_passes_is_one_plain_path_segment(name: str) -> None:
    try:
        passed = names.segment("project", name)
    except InvalidRequest:
        return
    assert Path("/root", passed).parent == Path("/root")
    assert passed not in (".", "..")


@pytest.mark.parametrize("value", ["", "..", "a/b", "a b", "-x", "x" * 129, "a\r\nb"])
def test_hostile_session_ids_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="session id"):
        names.session_id(value)


def test_a_session_id_may_be_a_uuid_or_any_short_token() -> None:
    for value in ("6474d768-d8e6-441b-ace0-e0a2af8a0e91", "user:42", "abc-123"):
        assert names.session_id(value) == value


def test_a_file_hash_is_64_hex_digits_in_any_case() -> None:
    assert names.file_hash("AB" * 32) == "ab" * 32
    for value in ("ab" * 31, "zz" * 32, "../" + "a" * 61):
        with pytest.raises(InvalidRequest, match="SHA-256"):
            names.file_hash(value)


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("paper.pdf", "paper.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\notes.txt", "notes.txt"),
        ("日本語.txt", "日本語.txt"),
        ("a\x00b\r\n.txt", "ab.txt"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        ("..", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_file_names_are_made_safe_to_show(given_name: str, kept: str) -> None:
    assert names.file_name(given_name) == kept


@given(st.text(min_size=1))
def test_a_file_name_always_fits_and_has_no_folder(name: str) -> None:
    encodable = name.encode(errors="replace").decode()
    kept = names.file_name(encodable)
    assert 0 < len(kept.encode()) <= 255
    assert "/" not in kept
    assert "\\" not in kept


def test_a_long_file_name_keeps_its_suffix() -> None:
    assert names.file_name("é" * 300 + ".pdf").endswith("é.pdf")


def test_a_path_must_lie_inside_its_folder_links_included(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    assert names.path_inside(root, "a/b.gguf") == root / "a" / "b.gguf"
    for path in ("../x", "/etc/passwd", "a/../../x", "link/x", "a\x00b"):
        with pytest.raises(InvalidRequest, match="Invalid path"):
            names.path_inside(root, path)
