"""Converts a Hugging Face Llama checkpoint (safetensors) to GGUF: `python -m llamastead_server.workers.gguf SRC DST`.

It streams one tensor at a time, so memory stays at the size of the largest; the file appears under its name
only when it is whole. Exit status 2 means that the checkpoint is of a kind it does not convert.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from llamastead_server.workers import child
from llamastead_server.workers.gguf_tokenizer import Unsupported, add_tokenizer

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}
_Q8_BLOCK = 32


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the config says of the model."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocabulary: int
    epsilon: float
    rope_theta: float
    rope: Mapping[str, Any]
    tied: bool


def convert(source: Path, target: Path, kind: str = "q8_0") -> None:
    """Writes the GGUF form of a checkpoint.

    Args:
        source: Folder with config.json, tokenizer.json and *.safetensors.
        target: The file to write; replaced if it exists.
        kind: `q8_0` or `f16`, for matrices; vectors stay float32.

    Raises:
        Unsupported: It is not a Llama checkpoint that llama.cpp would run as it was trained.
    """
    config = _json(source / "config.json")
    shape = _shape(config)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.part")
    _remove_abandoned(target)
    body, file_type = _TYPES[kind]
    writer = gguf.GGUFWriter(unfinished, "llama")
    try:
        _add_shape(writer, source.name, shape)
        writer.add_file_type(file_type)
        add_tokenizer(writer, source, config, shape.vocabulary)
        with ExitStack() as stack:
            tensors = list(_tensors(source, shape, stack))
            for name, size, _ in tensors:
                _declare(writer, name, size, body)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, _, read in tensors:
                writer.write_tensor_data(_encoded(read(), _type_of(name, read_size=None, body=body)))
        writer.flush()
        writer.close()
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)
