"""The tokenizer: byte-level BPE in the form that Llama 3 uses.

Digits never merge, so that numbers are copied digit by digit. The pre-tokenizer
of Llama 3 would allow groups of three digits; the merges are therefore learned with
digits split, and the finished tokenizer simply has no merge that joins two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tiny_model.lessons import Limits, Teacher
from tiny_model.prompt import (
    BEGIN_OF_TEXT,
    CHAT_TEMPLATE,
    END_HEADER,
    END_OF_TURN,
    PADDING,
    SPECIAL_TOKENS,
    START_HEADER,
    Message,
)
from tiny_model.words import corpus_texts

VOCABULARY = 2048
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE_LESSONS = 2000


def _training_text(seed: int) -> Iterator[str]:
    teacher = Teacher(seed)
    for text in corpus_texts().values():
        yield from [text] * 4
    for number in range(SAMPLE_LESSONS):
        lesson = teacher.reading(Limits(8, 2)) if number % 2 else teacher.chatting()
        yield "\n".join(message.content for message in lesson)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Learn the merges and return the tokenizer with its chat template."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(seed), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a trained model."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a special token, which must exist."""
    found = tokenizer.backend_tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}")
    return int(found)


class Encoder:
    """Turns conversations into token ids and marks the ids that are to be learned."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.begin = token_id(tokenizer, BEGIN_OF_TEXT)
        self.end_of_turn = token_id(tokenizer, END_OF_TURN)
        self._headers: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens in it count as such."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def header(self, role: str) -> list[int]:
        """Return the ids that open a turn."""
        if role not in self._headers:
            self._headers[role] = self.text(f"{START_HEADER}{role}{END_HEADER}\n\n")
        return self._headers[role]

    def conversation(self, messages: list[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, as the chat template would write it."""
        ids, learned = [self.begin], [False]
        for message in messages:
            header = self.header(message.role)
            body = [*self.text(message.content.strip()), self.end_of_turn]
            ids += header + body
            learned += [False] * len(header) + [message.role == "assistant"] * len(body)
        return ids, learned

    def prompt(self, messages: list[Message]) -> list[int]:
        """Return the ids up to the point where the assistant speaks."""
        return self.conversation(messages)[0] + self.header("assistant")
