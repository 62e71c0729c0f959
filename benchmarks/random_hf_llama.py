"""Makes Llamas with random weights, as Hugging Face folders: they cost what real ones of their shape cost.

As with `random_llama`, each made-up word is one token, and greedy decoding never ends an answer early: the rows of the
output matrix behind control and byte tokens are zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from benchmarks.random_llama import CHAT_TEMPLATE, words

_CONTROL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPACE = "\u0120"
_SHARD = 4 << 30
_SPREAD = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Llama 3."""

    name: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    feed_forward: int
    vocabulary: int = 128_256
    window: int = 8192

    @property
    def head_width(self) -> int:
        """Numbers in one attention head."""
        return self.hidden // self.heads


SHAPES = {
    "1b": Shape("random-llama-1b", 2048, 16, 32, 8, 8192),
    "8b": Shape("random-llama-8b", 4096, 32, 32, 8, 14336),
    "tiny": Shape("random-llama-tiny", 256, 4, 4, 2, 768, vocabulary=4096),
}


def make(folder: Path, shape: Shape) -> Path:
    """Returns the model's folder inside `folder`, making it first unless it is there."""
    target = folder / shape.name
    if not (target / "config.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        silent = _write_tokenizer(target, shape)
        _write_weights(target, shape, silent)
        torch.cuda.empty_cache()
        # Last: what has a config is whole.
        (target / "config.json").write_text(json.dumps(_config(shape, silent)))
    return target


def _config(shape: Shape, silent: int) -> Mapping[str, Any]:
    control = silent - len(_CONTROL)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.window,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": control,
        "eos_token_id": [control + 1, control + 4],
    }


def _write_tokenizer(folder: Path, shape: Shape) -> int:
    """Writes it; returns how many tokens at its beginning must never be generated."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    silent = len(letters) + len(_CONTROL)
    tokens = [*letters, *_CONTROL, *(_SPACE + word for word in words(shape.vocabulary - silent))]
    fillers = [f"{_SPACE}filler{index}" for index in range(shape.vocabulary - len(tokens))]
    vocabulary = {token: index for index, token in enumerate([*tokens, *fillers])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": _CONTROL[0], "eos_token": _CONTROL[4], "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return silent


def _write_weights(folder: Path, shape: Shape, silent: int) -> None:
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def save() -> None:
        file = f"model-{len(set(places.values())):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, tensor in _tensors(shape, silent):
        shard[name] = tensor
        if sum(each.numel() * 2 for each in shard.values()) >= _SHARD:
            save()
    save()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _tensors(shape: Shape, silent: int) -> Iterator[tuple[str, torch.Tensor]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=draw, device=device) * _SPREAD).half().cpu()

    keys = shape.key_heads * shape.head_width
    yield "model.embed_tokens.weight", random(shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", shape.hidden, shape.hidden),
            ("self_attn.k_proj", keys, shape.hidden),
            ("self_attn.v_proj", keys, shape.hidden),
            ("self_attn.o_proj", shape.hidden, shape.hidden),
            ("mlp.gate_proj", shape.feed_forward, shape.hidden),
            ("mlp.up_proj", shape.feed_forward, shape.hidden),
            ("mlp.down_proj", shape.hidden, shape.feed_forward),
        ):
            yield f"{prefix}{name}.weight", random(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", torch.ones(shape.hidden, dtype=torch.float16)
    yield "model.norm.weight", torch.ones(shape.hidden, dtype=torch.float16)
    output = random(shape.vocabulary, shape.hidden)
    output[:silent] = 0
    yield "lm_head.weight", output
