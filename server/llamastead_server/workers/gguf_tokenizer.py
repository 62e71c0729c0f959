"""The tokenizer of a Hugging Face checkpoint, as GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

_LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Unsupported(ValueError):
    """The checkpoint is of a kind that is not converted; the message completes "it cannot be converted: ..."."""


def add_tokenizer(writer: gguf.GGUFWriter, source: Path, config: Mapping[str, Any], vocabulary: int) -> None:
    """Adds tokens, merges, special tokens and the chat template.

    Raises:
        Unsupported: It is not a byte-level BPE tokenizer whose pre-tokenizer llama.cpp knows.
    """
    tokenizer = _json(source / "tokenizer.json")
    if tokenizer is None:
        raise Unsupported("it has no tokenizer.json.")
    settings = _json(source / "tokenizer_config.json") or {}
    generation = _json(source / "generation_config.json") or {}
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise Unsupported("its tokenizer is not byte-level BPE (Llama 3 and later). Use a .gguf of it.")
    tokens = [f"[PAD{index}]" for index in range(vocabulary)]
    kinds = [gguf.TokenType.UNUSED] * vocabulary
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens", ())}
    if max([*model["vocab"].values(), *added], default=0) >= vocabulary:
        raise Unsupported("its tokenizer has more tokens than the model.")
    for text, index in model["vocab"].items():
        tokens[index], kinds[index] = text, gguf.TokenType.NORMAL
    for index, entry in added.items():
        tokens[index] = entry["content"]
        kinds[index] = gguf.TokenType.CONTROL if entry["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    _add_special_tokens(writer, tokens, tokenizer, config, generation)
    template = chat_template(source, settings)
    if template:
        writer.add_chat_template(template)


def _add_special_tokens(
    writer: gguf.GGUFWriter,
    tokens: list[str],
    tokenizer: Mapping[str, Any],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> None:
    begin = config.get("bos_token_id", generation.get("bos_token_id"))
    if isinstance(begin, int):
        writer.add_bos_token_id(begin)
    adds_begin = isinstance(begin, int) and json.dumps(tokens[begin]) in json.dumps(tokenizer.get("post_processor"))
    writer.add_add_bos_token(adds_begin)
    ends: list[int] = []
    for source in (config, generation):
        value = source.get("eos_token_id")
        ends.extend(end for end in (value if isinstance(value, list) else [value]) if isinstance(end, int))
    ends = list(dict.fromkeys(ends))
    if not ends:
        raise Unsupported("its config.json names no end-of-sequence token.")
    # GGUF has a place for one end of sequence, one end of turn and one end of message.
    for end, add in zip(
        ends, (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(end)
    padding = config.get("pad_token_id")
    if isinstance(padding, int) and 0 <= padding < len(tokens):
        writer.add_pad_token_id(padding)


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way text is split before merging."""
    outer = tokenizer.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    others = [step.get("type") for step in steps if step.get("type") not in ("Split", "ByteLevel")]
    byte_level = next((step for step in steps if step.get("type") == "ByteLevel"), None)
    if byte_level is not None and not byte_level.get("add_prefix_space"):
        if patterns == [_LLAMA_3_SPLIT] and not others and not byte_level.get("use_regex", True):
            return "llama-bpe"
        if not patterns and byte_level.get("use_regex", True):
            if not others:
                return "gpt-2"
            if others == ["Digits"] and steps[0].get("individual_digits"):
                return "smollm"
    raise Unsupported("its tokenizer splits text in a way that is not known here. Use a .gguf of it.")


def chat_template(source: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template of a Hugging Face folder: a file of its own, or in `settings`, its tokenizer_config.json."""
    file = source / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise Unsupported(f"its {path.name} is not JSON.") from None
    return content
