"""Makes a Llama with random weights, as a GGUF file: it says nothing, but costs what a real one of its size costs.

Its vocabulary is made for measuring: each made-up word is one token, so prompts have exactly the length they
are meant to have; and the rows of the output matrix behind control and byte tokens are zero, so that greedy
decoding never ends an answer early nor emits half a character.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_CONTROL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_SPACE = "Ġ"
"""How a byte-level vocabulary writes the space before a word."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Llama; the default has 150 million parameters."""

    width: int = 768
    layers: int = 16
    heads: int = 12
    key_heads: int = 4
    feed_forward: int = 2048
    vocabulary: int = 32_000
    context_length: int = 4096

    @property
    def head_width(self) -> int:
        """Numbers in one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Weights of the matrices."""
        attention = 2 * self.width * self.width + 2 * self.width * self.key_heads * self.head_width
        return 2 * self.vocabulary * self.width + self.layers * (attention + 3 * self.width * self.feed_forward)

    @property
    def name(self) -> str:
        """What the model is called, for example `random-llama-150m`."""
        return f"random-llama-{round(self.parameters / 1e6)}m"


def words(count: int) -> list[str]:
    """Made-up words, all different, of three syllables each; the first `count` of a fixed order."""
    return list(_all_words()[:count])


def prompt(seed: str, length: int) -> str:
    """A text of `length` words; two seeds' texts differ from the first word on, and both have as many tokens."""
    draw = random.Random(seed)
    known = words(1000)
    return " ".join(draw.choice(known) for _ in range(length))


def rendered(content: str) -> str:
    """What the chat template makes of one user message."""
    user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    return f"<|begin_of_text|>{user}{content}<|eot_id|>{assistant}"


def make(folder: Path, shape: Shape | None = None) -> Path:
    """Returns the model's file in `folder`, writing it first unless it is there."""
    shape = shape or Shape()
    target = folder / f"{shape.name}.gguf"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        _write(partial, shape)
        partial.rename(target)
    return target


@functools.cache
def _all_words() -> Sequence[str]:
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    every = ["".join(three) for three in itertools.product(syllables, repeat=3)]
    random.Random(0).shuffle(every)
    return tuple(every)


def _write(path: Path, shape: Shape) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(shape.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    silent = _add_tokenizer(writer, shape.vocabulary)
    _add_weights(writer, shape, silent)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> int:
    """Adds the vocabulary; returns how many tokens at its beginning must never be generated."""
    letters = _byte_letters()
    silent = len(letters) + len(_CONTROL)
    tokens = [*letters, *_CONTROL, *(_SPACE + word for word in words(size - silent))]
    kinds = [gguf.TokenType.NORMAL] * size
    kinds[len(letters) : silent] = [gguf.TokenType.CONTROL] * len(_CONTROL)
    ids = {token: index for index, token in enumerate(tokens)}
    writer.add_tokenizer_model("gpt2")
    # Llama 3's rule takes a word that is in the vocabulary whole, so no merges need lead to it.
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(ids["<|begin_of_text|>"])
    writer.add_eos_token_id(ids["<|end_of_text|>"])
    writer.add_eot_token_id(ids["<|eot_id|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return silent


def _byte_letters() -> Sequence[str]:
    """The characters that stand for the 256 bytes in a byte-level vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(hidden))]


def _add_weights(writer: gguf.GGUFWriter, shape: Shape, silent: int) -> None:
    draw = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int, *, size: float = 1.0, zero_rows: int = 0) -> None:
        weights: NDArray[np.float32] = draw.standard_normal((rows, columns), dtype=np.float32)
        weights *= np.float32(size / np.sqrt(columns))
        weights[:zero_rows] = 0
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.width, dtype=np.float32))

    matrix("token_embd.weight", shape.vocabulary, shape.width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        matrix(block + "attn_q.weight", shape.width, shape.width)
        matrix(block + "attn_k.weight", shape.key_heads * shape.head_width, shape.width)
        matrix(block + "attn_v.weight", shape.key_heads * shape.head_width, shape.width)
        matrix(block + "attn_output.weight", shape.width, shape.width)
        norm(block + "ffn_norm.weight")
        matrix(block + "ffn_gate.weight", shape.feed_forward, shape.width)
        matrix(block + "ffn_up.weight", shape.feed_forward, shape.width)
        matrix(block + "ffn_down.weight", shape.width, shape.feed_forward)
    norm("output_norm.weight")
    # Logits this far apart make a few tokens likely, as in a trained model; sampling costs more if all are.
    matrix("output.weight", shape.vocabulary, shape.width, size=6.0, zero_rows=silent)


def main() -> None:
    """Makes the model from the command line."""
    parser = argparse.ArgumentParser(description="Makes a Llama with random weights, as a GGUF file.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()) / "llamastead-bench")
    print(make(parser.parse_args().folder))


if __name__ == "__main__":
    main()
