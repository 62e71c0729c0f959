from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llamastead_server.adapters import yaml_files
from llamastead_server.adapters.yaml_revision import revised as in_place
from llamastead_server.domain.errors import InvalidRequest

_END = "...\n"

HAND_WRITTEN = """\
# The bot of the shop. Ask Zoë before you touch it.
version: v1
name: bot   # as in the invoices
namespace: org

# --- models ---
runtime:
    # four spaces here, two below
    models:
      - {name: small, model: "tiny"}   # in brackets
      - name: 'big'
        model: huge
        model_api_parameters: {temperature: 0.5, stop: ["a", b]}  # cosy
        description: over
          two lines
prompts:
- name: p
  messages:
  - role: system
    content: |
      Line one. # no comment

      Zeile zwei: ünï 日本 😀
  # the folded one
  - role: user
    content: >-
      folded
      on

      and on
x_shared: &shared
  embedder: e
  on: "on"
rag:
  databases:
    - name: one
      config: *shared   # the shared one
    # second
    - name: two
      config:
        <<: *shared
        more: 1
datasets:
  # about a
  - name: a
    database: one   # where a goes

  # about b
  - name: b
    database: two   # where b goes

# --- the end ---
x_values:
  yes_text: "yes"
  no_float: 1e3
  octal: 010
  nothing: ~
  empty:
  flag: on
  date: 2024-01-02
"""


def revised(tmp_path: Path, text: str, change: Callable[[Any], Any]) -> str:
    path = tmp_path / "file.yaml"
    path.write_bytes(text.encode())
    content = copy.deepcopy(yaml_files.parse(text.encode()))
    content = change(content) or content
    yaml_files.revise(path, content)
    after = path.read_bytes()
    assert yaml_files.parse(after) == content
    return after.decode()


def difference(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("+ ", "- "))]


def test_a_file_that_says_what_it_should_stays_byte_for_byte(tmp_path: Path) -> None:
    assert revised(tmp_path, HAND_WRITTEN, lambda content: content) == HAND_WRITTEN


def test_a_new_item_goes_below_the_last_one_before_the_next_headings(tmp_path: Path) -> None:
    new = {"name": "c", "database": "one"}
    after = revised(tmp_path, HAND_WRITTEN, lambda content: content["datasets"].append(new))
    assert difference(HAND_WRITTEN, after) == ["+   - name: c", "+     database: one"]
    assert "where b goes\n  - name: c\n    database: one\n\n# --- the end ---" in after


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_removed_item_takes_no_other_comment_along(tmp_path: Path, name: str) -> None:
    def remove(content: Any) -> None:
        content["datasets"] = [entry for entry in content["datasets"] if entry["name"] != name]

    gone = difference(HAND_WRITTEN, revised(tmp_path, HAND_WRITTEN, remove))
    assert gone == [f"-   - name: {name}", f"-     database: {'one' if name == 'a' else 'two'}   # where {name} goes"]


def test_the_last_item_leaves_an_empty_list_and_the_comments_within(tmp_path: Path) -> None:
    after = revised(tmp_path, HAND_WRITTEN, lambda content: content["datasets"].clear())
    assert "# about a\ndatasets: []   # where b goes\n\n# --- the end ---\n" in after
    again = revised(tmp_path, after, lambda content: content["datasets"].append({"name": "z"}))
    assert "# about a\n# where b goes\ndatasets:\n- name: z\n\n# --- the end ---\n" in again


def test_a_changed_value_keeps_the_comment_behind_it_and_brackets_stay_brackets(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["name"] = "robot"
        content["runtime"]["models"][0]["model"] = "on"
        content["runtime"]["models"][1]["model_api_parameters"]["temperature"] = 0.75
        content["runtime"]["models"][1]["description"] = "short"

    after = revised(tmp_path, HAND_WRITTEN, change)
    assert "name: robot   # as in the invoices" in after
    assert "      - {name: small, model: 'on'}   # in brackets" in after
    assert "        model_api_parameters: {temperature: 0.75, stop: [a, b]}  # cosy" in after
    assert "        description: short\nprompts:" in after
    assert len(difference(HAND_WRITTEN, after)) == 9


def test_a_text_that_becomes_long_does_not_swallow_the_comment_behind_it(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["datasets"][0]["database"] = " one\n\n  two # three\n"
        content["datasets"][1] = {"name": "b", "database": {"x": [1, {"y": 2}]}}

    after = revised(tmp_path, HAND_WRITTEN, change)
    assert "  - name: a\n    # where a goes\n    database: |" in after
    assert "    # where b goes\n    database:\n      x:\n      - 1\n      - y: 2\n\n# --- the end ---" in after


def test_prompts_of_many_lines_anchors_and_odd_words_survive_changes_around_them(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["prompts"][0]["messages"].insert(1, {"role": "user", "content": "Hi: there"})
        content["rag"]["databases"].append({"name": "three"})
        content["x_values"]["new"] = "1e3"
        del content["x_values"]["yes_text"]

    after = revised(tmp_path, HAND_WRITTEN, change)
    assert difference(HAND_WRITTEN, after) == [
        "+   - role: user",
        "+     content: 'Hi: there'",
        "+     - name: three",
        '-   yes_text: "yes"',
        "+   new: '1e3'",
    ]


def test_a_change_of_what_is_merged_in_writes_that_mapping_only(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["rag"]["databases"][1]["config"]["embedder"] = "other"
        content["rag"]["databases"][0]["config"]["embedder"] = "mine"

    after = revised(tmp_path, HAND_WRITTEN, change)
    assert "      config:\n        embedder: mine\n" in after
    assert "x_shared: &shared\n" in after
    assert "# the shared one" in after
    assert len(difference(HAND_WRITTEN, after)) < 14


def test_a_change_of_an_anchor_in_use_elsewhere_writes_the_file_anew(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["x_shared"]["embedder"] = "changed"

    assert revised(tmp_path, HAND_WRITTEN, change).startswith("version: v1\n")


@pytest.mark.parametrize(
    "text",
    [
        "{a: [1, 2], b: {c: d}} # all in brackets\n",
        "\ufeffa:\n- 1\nb: {c: d}\n",
        "%YAML 1.1\n---\na: [1]\nb:\n  c: d\n...\n",
        "a:\r\n- 1   # one\r\n- 2\r\nb: # b\r\n  c: d # c\r\n",
        "? a\n: - 1\n? b\n: c: d",
        "a: !!seq\n- 1\nb: !!map\n  c: d\n",
        "a: &x\n  - - 1\n    - *z\nb: *x\n",
        "on: 1\na: [1]\n<<: {b: {c: d}}\n",
        "a:\n  -\n    1\n  - |+\n    text\n\n\nb:\n  c: |+\n    d\n\n",
        "a:\n - 1\nb:\n  c: d",
        "a: 1",
    ],
)
def test_whatever_its_form_a_file_says_afterwards_what_it_should(tmp_path: Path, text: str) -> None:
    def change(content: Any) -> Any:
        return (
            {**content, "a": [*content.get("a", []), 2], "b": {"e": "f"}} if isinstance(content.get("a"), list) else {}
        )

    if "*z" not in text:
        revised(tmp_path, text, change)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: b"\xef\xbb\xbf" + text.encode()),
        (
            lambda text: text.replace("\n", "\r\n").encode(),
            lambda text: text.replace("\n", "\r\n").encode(),
        ),
        (
            lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
            lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        ),
        (lambda text: text.encode("utf-16"), lambda text: text.encode()),
    ],
    ids=["mark", "line-ends", "mark-and-line-ends", "utf-16"],
)
def test_a_file_of_an_editor_on_windows_keeps_its_comments_its_mark_and_its_line_ends(
    tmp_path: Path, written: Callable[[str], bytes], kept: Callable[[str], bytes]
) -> None:
    text = "# top\na: one\n# about b\nb:\n- x  # the x\n\n# end\n"
    path = tmp_path / "file.yaml"
    path.write_bytes(written(text))
    yaml_files.revise(path, {"a": "one", "b": ["x", "y"]})
    assert path.read_bytes() == kept(text.replace("# the x\n", "# the x\n- y\n"))


def test_a_key_that_is_there_twice_is_refused_by_its_lines_and_not_forgotten() -> None:
    with pytest.raises(InvalidRequest, match="the key 'b' is there twice, in lines 3 and 5"):
        yaml_files.parse(b"a:\n- c: 1\n  b: 2\n  d: 3\n  b: 4\n")
    merged = b"x: &x {a: 1}\ny: &y {<<: *x, a: 2}\nz: {<<: *y, a: 3}\n"
    assert yaml_files.parse(merged)["z"] == {"a": 3}


@pytest.mark.parametrize("end", ["\r", "\x85", "\u2028", "\u2029"])
def test_a_text_with_line_ends_of_other_kinds_costs_no_comment(tmp_path: Path, end: str) -> None:
    after = revised(tmp_path, HAND_WRITTEN, lambda content: content["x_values"].update(new=f"{end}x\n y{end}\nz"))
    assert [line for line in difference(HAND_WRITTEN, after) if line.startswith("-")] == []


def test_a_link_stays_one_and_who_may_read_the_file_still_may(tmp_path: Path) -> None:
    kept, link = tmp_path / "kept.yaml", tmp_path / "link.yaml"
    kept.write_text("# mine\na: 1\n")
    kept.chmod(0o664)
    link.symlink_to(kept)
    yaml_files.revise(link, {"a": 2})
    assert link.is_symlink()
    assert kept.read_text() == "# mine\na: 2\n"
    assert kept.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("value", [[1] * 300_000, "\x7f" * 1_500_000], ids=["values", "bytes"])
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("# mine\na: 1\n")
    for write in (yaml_files.write, yaml_files.revise):
        with pytest.raises(InvalidRequest):
            write(path, {"a": value})
    assert path.read_text() == "# mine\na: 1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.yaml"]


scalars = st.none() | st.booleans() | st.integers(-9, 99) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
keys = st.sampled_from(["a", "b", "name", "on", "1e3", "x y"])
values = st.recursive(
    scalars
    | st.sampled_from(
        [
            "on",
            "1e3",
            "a\nb",
            "\u2028a\n b",
            "a\x85\nb",
            "a\n\n b # c\n",
            "- x",
            "#",
            "ünï",
            "x: y",
            "~",
            " ",
            "\n\n",
            "2024-01-02",
        ]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
mappings = st.dictionaries(keys, values, min_size=1)


@settings(max_examples=200, deadline=None)
@given(old=mappings, new=mappings, flow=st.booleans(), indent=st.sampled_from([2, 4]))
def test_any_change_of_any_file_is_made_in_place_and_loses_no_heading(
    old: Any, new: Any, flow: bool, indent: int
) -> None:
    headings = [f"# about {key}\n" for key in old]
    style: Any = {"indent": indent, "allow_unicode": True, "sort_keys": False}
    entries = [
        f"{key!r}: {yaml.safe_dump(value, default_flow_style=True, width=1 << 30, **style)}"
        if flow
        else yaml.safe_dump({key: value}, **style)
        for key, value in old.items()
    ]
    text = "".join(f"{heading}{entry.removesuffix(_END)}" for heading, entry in zip(headings, entries, strict=True))
    after = in_place(text, yaml_files.parse(text.encode()), new, yaml_files.dump)
    assert after is not None
    assert yaml_files.parse(after.encode()) == new
    assert [heading for heading in headings if heading not in after] == []
