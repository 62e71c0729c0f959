"""Prompts and token texts, compared with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from llamastead_server.domain.models.generation import Message
from llamastead_server.workers.hf_tokenizer import HfTokenizer
from llamastead_server.workers.model import Refused
from tests.workers.exllama_cpu import SPECIAL, TEMPLATE, make_tokenizer

TEXT = "It's 12345 naïve cafés, isn't it?\n\n  日本語 👩‍👩‍👧 — end.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def loaded(folder: Path) -> HfTokenizer:
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return HfTokenizer(folder, {"bos_token_id": words.token_to_id(SPECIAL[0])})


async def test_text_is_encoded_as_transformers_does_and_comes_back(folder: Path) -> None:
    tokenizer, words = loaded(folder), make_tokenizer()
    tokens = await tokenizer.encode_text(TEXT)
    assert tokens == words.encode(TEXT, add_special_tokens=False)
    assert b"".join(map(tokenizer.bytes_of, tokens)).decode() == TEXT
    assert await tokenizer.count(TEXT * 500) == len(words.encode(TEXT * 500, add_special_tokens=False))
    assert tokenizer.size == len(words)


async def test_a_typed_control_token_becomes_characters_and_never_the_token(folder: Path) -> None:
    tokenizer, words = loaded(folder), make_tokenizer()
    control = {words.convert_tokens_to_ids(text) for text in [*SPECIAL, "<tool_call>"]}
    harmless = await tokenizer.encode_conversation([Message("user", "ab")])
    for text in [*SPECIAL, "<tool_call>"]:
        hostile = await tokenizer.encode_conversation([Message("user", f"a{text}b")])
        assert [token for token in hostile if token in control] == [token for token in harmless if token in control]
        assert f"a{text}b" in words.decode(hostile)
        assert not control & set(await tokenizer.encode_text(text))


async def test_the_engines_own_tokenizer_would_honour_it(folder: Path, tmp_path: Path) -> None:
    from tests.workers import exllama_stub

    exllama_stub.install()
    from types import SimpleNamespace

    import exllamav2

    own = exllamav2.ExLlamaV2Tokenizer(
        SimpleNamespace(model_dir=str(folder), eos_token_id=0, bos_token_id=1, pad_token_id=2)
    )
    token = make_tokenizer().convert_tokens_to_ids(SPECIAL[4])
    assert token in own.encode(f"a{SPECIAL[4]}b", encode_special_tokens=False)[0].tolist()


def test_control_tokens_are_no_text_and_have_a_name(folder: Path) -> None:
    tokenizer, words = loaded(folder), make_tokenizer()
    end = words.convert_tokens_to_ids(SPECIAL[4])
    assert tokenizer.bytes_of(end) == b""
    assert tokenizer.text_of(end) == SPECIAL[4]
    assert tokenizer.end_tokens == [end]
    assert end in tokenizer.control_tokens
    call = words.convert_tokens_to_ids("<tool_call>")
    assert tokenizer.bytes_of(call) == b"<tool_call>"
    assert tokenizer.bytes_of(10**6) == b""


@pytest.mark.parametrize("place", ["file", "settings", "list"])
async def test_the_template_is_found_wherever_transformers_put_it(folder: Path, place: str) -> None:
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "{{ raise_exception('no') }}"}, {"name": "default", "template": TEMPLATE}]
    if place == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        settings["chat_template"] = TEMPLATE if place == "settings" else named
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    words = make_tokenizer()
    expected = words.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert await loaded(folder).encode_conversation([Message("user", "hi")]) == words.encode(
        expected, add_special_tokens=False
    )


async def test_a_template_that_refuses_says_why(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only one turn') }}")
    with pytest.raises(Refused, match="only one turn"):
        await loaded(folder).encode_conversation([Message("user", "hi")])


@pytest.mark.parametrize("adds", [True, False, None])
async def test_prompts_begin_as_the_model_was_trained(folder: Path, adds: bool | None) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("add_bos_token", None)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | ({} if adds is None else {"add_bos_token": adds}))
    )
    tokenizer = loaded(folder)
    begin = make_tokenizer().convert_tokens_to_ids(SPECIAL[0])
    assert (await tokenizer.encode_text("a"))[0] == begin if adds else begin not in await tokenizer.encode_text("a")
    assert (await tokenizer.encode_conversation([Message("user", "a")])).count(begin) == 1


def test_pieces_of_sentencepiece_are_bytes_and_blanks(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "\u2581the": 1, "<0xE6>": 2, "cat": 3, "<s>": 4}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    words.normalizer = normalizers.Prepend("\u2581")
    words.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    words.add_special_tokens([AddedToken("<s>", special=True)])
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer: Any = HfTokenizer(tmp_path, {"bos_token_id": 4})
    assert [tokenizer.bytes_of(token) for token in range(5)] == [b"<unk>", b" the", b"\xe6", b"cat", b""]
