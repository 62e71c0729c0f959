"""The tokenizer and chat template of a Hugging Face folder, for an engine that takes token ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llamastead_server.workers.chat_template import ChatTemplate, ControlTokens
from llamastead_server.workers.gguf_tokenizer import chat_template
from llamastead_server.workers.prompt_encoder import PromptEncoder

_LONG_TEXT = 4096
"""Characters from which on encoding leaves the event loop."""


class HfTokenizer(PromptEncoder):
    """Encodes prompts exactly as the model was trained, with control tokens only where the template puts them.

    Args:
        folder: Holds tokenizer.json, and optionally tokenizer_config.json and chat_template.jinja.
        config: The model's config.json.

    Raises:
        TemplateRefused: The chat template is not valid.
        Exception: tokenizer.json is not one.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        raw = json.loads((folder / "tokenizer.json").read_bytes())
        settings = _settings(folder)
        self._words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._words.no_truncation()
        self._words.no_padding()
        # What a user types is text, whatever it spells.
        self._words.encode_special_tokens = True
        added = raw.get("added_tokens") or ()
        self._special = {entry["id"] for entry in added if entry.get("special")}
        control = {entry["content"]: entry["id"] for entry in added if entry.get("special")}
        defined = {entry["content"]: entry["id"] for entry in added if not entry.get("special")}
        self._plain: dict[int, bytes] = {token: text.encode() for text, token in defined.items()}
        tokens = ControlTokens(control, defined)
        self._byte_level = "ByteLevel" in _kinds(raw.get("decoder"))
        begin = _special_text(settings.get("bos_token"))
        if begin is None and isinstance(index := config.get("bos_token_id"), int):
            begin = self._words.id_to_token(index)
        end = _special_text(settings.get("eos_token"))
        self._end = None if end is None else self._words.token_to_id(end)
        template = ChatTemplate(chat_template(folder, settings), tokens, bos_token=begin or "", eos_token=end or "")
        super().__init__(template, tokens)
        self._begin = self._first_tokens(begin, settings.get("add_bos_token"))
        self._bytes: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        """Number of tokens."""
        return int(self._words.get_vocab_size(with_added_tokens=True))

    @property
    def end_tokens(self) -> list[int]:
        """The token that the tokenizer's configuration calls the end of a sequence."""
        return [] if self._end is None else [self._end]

    @property
    def control_tokens(self) -> frozenset[int]:
        """Tokens that are no text."""
        return frozenset(self._special)

    def encode(self, text: str) -> list[int]:
        """Encodes plain text by itself."""
        tokens: list[int] = self._words.encode(text, add_special_tokens=False).ids
        return tokens

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text; nothing for control tokens and unknown ids."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._bytes_of(token)
        return known

    def text_of(self, token: int) -> str:
        """How a token is written, control tokens included."""
        if token in self._special:
            return str(self._words.id_to_token(token))
        return self.bytes_of(token).decode(errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        if token in self._special:
            return b""
        if token in self._plain:
            return self._plain[token]
        piece: str | None = self._words.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            letters = _byte_letters()
            return b"".join(letters.get(letter) or letter.encode() for letter in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def _first_tokens(self, begin: str | None, adds: Any) -> list[int]:
        """What every prompt begins with."""
        index = None if begin is None else self._words.token_to_id(begin)
        if isinstance(adds, bool):
            return [index] if adds and index is not None else []
        wrapped = self._words.encode("", add_special_tokens=True).ids
        return [index] if index is not None and index in wrapped else []

    async def _beginning(self) -> list[int]:
        return self._begin

    async def _encode_run(self, text: str) -> list[int]:
        if len(text) < _LONG_TEXT:
            return self.encode(text)
        return await asyncio.to_thread(self.encode, text)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    except FileNotFoundError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _special_text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _kinds(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*(_kinds(part) for part in decoder.get("decoders") or ()))


@cache
def _byte_letters() -> Mapping[str, bytes]:
    """The letters by which a byte-level vocabulary writes bytes: printable ones as they are, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}
