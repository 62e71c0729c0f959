"""GGUF headers, of real and of damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

import llamastead_server
from llamastead_server.domain.models.gguf_header import BadGguf, read_header

MODEL = next((Path(llamastead_server.__file__).parent / "models").glob("*.gguf"))


def test_the_model_on_board_says_what_it_is() -> None:
    header = read_header(MODEL, arrays=frozenset({"tokenizer.ggml.tokens"}))
    assert header.architecture == "llama"
    assert header.context_length is not None
    assert header.context_length >= 2048
    assert 1_000_000 < header.parameters < 8_000_000
    assert "<|eot_id|>" in header.metadata["tokenizer.ggml.tokens"]
    assert "tokenizer.ggml.merges" not in header.metadata


@pytest.mark.parametrize("size", [0, 3, 4, 20, 100, 5000])
def test_a_file_cut_short_is_a_clear_error(tmp_path: Path, size: int) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:size])
    with pytest.raises(BadGguf, match=r"broken\.gguf"):
        read_header(broken)


def test_a_lying_length_neither_hangs_nor_exhausts_memory(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:16] + b"\xff" * 200)
    with pytest.raises(BadGguf):
        read_header(broken)
