"""Text from tokens, however characters and stop strings are cut."""

from __future__ import annotations

import itertools

import pytest

from llamastead_server.workers.text_stream import TextStream


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def run(data: bytes, size: int, stops: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(stops)
    shown = [stream.push(piece)[0] for piece in pieces(data, size)]
    shown.append(stream.finish()[0])
    return shown, stream


@pytest.mark.parametrize("text", ["plain", "日本語 テキスト", "👩‍👩‍👧 🎉", "ďábel ñandú"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_characters_come_whole(text: str, size: int) -> None:
    shown, _ = run(text.encode(), size, [])
    assert "".join(shown) == text
    assert not any("\ufffd" in part for part in shown)


def test_half_a_character_at_the_end_is_dropped_and_a_wrong_byte_is_not() -> None:
    assert "".join(run("aé".encode()[:-1], 1, [])[0]) == "a"
    assert "".join(run(b"a\xffb", 1, [])[0]) == "a\ufffdb"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "stops", [["cde"], ["fgh", "ghij"], ["xyz", "abcdefghijk"], ["j"], ["zz", "p"], ["op!", "nop"], ["", "x"], ["日本"]]
)
def test_stop_strings_end_the_text_and_never_show(size: int, stops: list[str]) -> None:
    whole = "abcdefghijklmnop 日本 end"
    shown, stream = run(whole.encode(), size, stops)
    found = [at for stop in stops if stop and (at := whole.find(stop)) >= 0]
    assert "".join(shown) == whole[: min(found, default=len(whole))]
    assert stream.stopped == bool(found)
    for part in itertools.accumulate(shown):
        assert not any(stop and stop in part for stop in stops)


def test_what_might_have_become_a_stop_string_is_shown_at_the_end() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"a STO")[0] == "a "
    assert stream.finish()[0] == "STO"
    assert stream.push(b"x")[0] == "x"


def test_entries_come_with_the_text_of_their_tokens_and_not_with_a_stop_strings() -> None:
    stream = TextStream(["<end>"])
    assert stream.push("é".encode()[:1], 1) == ("", [])
    assert stream.push("é".encode()[1:], 2) == ("é", [1, 2])
    assert stream.push(b"a<", 3) == ("a", [])
    assert stream.push(b"b", 4) == ("<b", [3, 4])
    assert stream.push(b"c<en", 5) == ("c", [])
    assert stream.push(b"d>", 6) == ("", [])
    assert stream.stopped
    assert stream.push(b"more", 7) == ("", [])
    assert stream.finish() == ("", [])


def test_entries_of_control_tokens_and_of_the_end_are_not_lost() -> None:
    stream = TextStream()
    assert stream.push(b"", 1) == ("", [1])
    assert stream.push("é".encode()[:1], 2) == ("", [])
    assert stream.finish() == ("", [2])
