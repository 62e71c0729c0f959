"""Which tokens may follow, so that an answer is JSON of a schema; over lm-format-enforcer's character parser."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from lmformatenforcer import JsonSchemaParser, TokenEnforcer, TokenEnforcerTokenizerData
from lmformatenforcer.characterlevelparser import CharacterLevelParser, CharacterLevelParserConfig

from llamastead_server.workers.exllama_schema import enforceable
from llamastead_server.workers.model import Refused

_LONGEST_ARRAY = 1 << 30
_SPACE_BEHIND = (":", ",")
_UNFINISHED = "\ufffd"


class Vocabulary:
    """The tokens of a model as the enforcer wants them; made once, in seconds for a large one.

    Args:
        size: Number of tokens.
        bytes_of: A token's bytes; none for control tokens.
        ends: Tokens that end an answer.
    """

    def __init__(self, size: int, bytes_of: Callable[[int], bytes], ends: list[int]) -> None:
        self.size = size
        self.ends = ends
        texts = [(token, bytes_of(token).decode(errors="replace")) for token in range(size)]
        # Control characters are not JSON, and white space is no more than a blank here.
        usable = [(token, text) for token, text in texts if text and not any(letter < " " for letter in text)]
        self.data = TokenEnforcerTokenizerData(
            [(token, text, _UNFINISHED not in text) for token, text in usable],
            lambda tokens: b"".join(map(bytes_of, tokens)).decode(errors="replace"),
            ends,
            False,
            size,
        )
        self._letters = frozenset(self.data.tokenizer_alphabet)

    def writes(self, letter: str) -> bool:
        """Whether the model can write the character by itself."""
        return letter in self._letters


class JsonGrammar:
    """The state of one answer.

    Args:
        schema: The schema that binds it.
        vocabulary: The model's tokens.

    Raises:
        Refused: The schema uses something that would not bind the answer.
    """

    def __init__(self, schema: Mapping[str, Any], vocabulary: Vocabulary) -> None:
        config = CharacterLevelParserConfig(
            alphabet=vocabulary.data.tokenizer_alphabet,
            max_consecutive_whitespaces=1,
            force_json_field_order=False,
            max_json_array_length=_LONGEST_ARRAY,
        )
        try:
            inner = JsonSchemaParser(enforceable(schema, vocabulary.writes), config)
        except Refused:
            raise
        except Exception as error:
            # The library tells of what it does not take by exceptions of many kinds.
            raise Refused(f"The JSON schema is not supported: {' '.join(str(error).split())[:300]}") from None
        self._vocabulary = vocabulary
        self._enforcer = TokenEnforcer(vocabulary.data, _Strict(inner))
        self._tokens: list[int] = []
        self.stuck = False

    def feed(self, token: int) -> None:
        """Takes the next token of the answer."""
        self._tokens.append(token)

    def allowed(self) -> torch.Tensor:
        """Which tokens may follow, a truth value for each; only an end where the answer cannot go on, see `stuck`."""
        mask = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        ends = self._vocabulary.ends
        try:
            found = self._enforcer.get_allowed_tokens(self._tokens).allowed_tokens
            state = self._enforcer.prefix_states[tuple(self._tokens)]
            self._enforcer.prefix_states = {tuple(self._tokens): state}
            self.stuck = not state.parser.can_end() and set(found[:64]) <= set(ends)
        except Exception:
            # An error in here would end the answers of everyone in the batch.
            self.stuck = True
        # Inside a string nearly every token may follow; torch.tensor takes three times as long for a list.
        mask[torch.frombuffer(array("q", ends if self.stuck else found), dtype=torch.long)] = True
        return mask


class _Strict(CharacterLevelParser):  # type: ignore[misc]
    """Adds what the parser leaves out: no comma before a closing bracket, few blanks, plain numbers."""

    def __init__(self, inner: Any, last: str = "", in_string: bool = False, escaped: bool = False) -> None:
        # One is made for every character that is tried; the base's own constructor would read the environment.
        self._config = None
        self._inner = inner
        self._last = last
        self._in_string = in_string
        self._escaped = escaped

    def add_character(self, new_character: str) -> _Strict:
        inner = self._inner.add_character(new_character)
        if self._in_string:
            escaped = new_character == "\\" and not self._escaped
            closed = new_character == '"' and not self._escaped
            return _Strict(inner, new_character, not closed, escaped)
        last = self._last if new_character == " " else new_character
        return _Strict(inner, last, new_character == '"')

    def get_allowed_characters(self) -> str:
        allowed: str = self._inner.get_allowed_characters()
        if self._in_string:
            return allowed
        forbidden = "" if self._last in _SPACE_BEHIND else " "
        if self._last == ",":
            forbidden += "]}"
        elif self._last == ".":
            return "".join(letter for letter in allowed if letter.isdigit())
        elif self._last.isdigit():
            forbidden += "eE"
        return "".join(letter for letter in allowed if letter not in forbidden)

    def can_end(self) -> bool:
        return bool(self._inner.can_end())

    def shortcut_key(self) -> Hashable | None:
        key: Hashable | None = self._inner.shortcut_key()
        return key if self._in_string and not self._escaped else None
