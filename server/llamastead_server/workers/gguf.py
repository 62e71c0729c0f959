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
            for tensor in tensors:
                tensor.declare(writer, body)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(tensor.encoded(body))
        writer.flush()
        writer.close()
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the result, read when it is written."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]]

    def kind(self, body: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
        if len(self.shape) == 1:
            return gguf.GGMLQuantizationType.F32
        if body == gguf.GGMLQuantizationType.Q8_0 and self.shape[-1] % _Q8_BLOCK:
            return gguf.GGMLQuantizationType.F16
        return body

    def declare(self, writer: gguf.GGUFWriter, body: gguf.GGMLQuantizationType) -> None:
        kind = self.kind(body)
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = math.prod(self.shape) // per_block * block_bytes
        writer.add_tensor_info(self.name, self.shape, np.dtype(np.float32), size, raw_dtype=kind)

    def encoded(self, body: gguf.GGMLQuantizationType) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = gguf.quants.quantize(self.read(), self.kind(body))
        return values


def _shape(config: Mapping[str, Any]) -> _Shape:
    architecture = next(iter(config.get("architectures") or ()), config.get("model_type", "unknown"))
    if architecture not in ("LlamaForCausalLM", "llama"):
        raise Unsupported(
            f"its architecture is {architecture}, and only LlamaForCausalLM is converted. Use a .gguf of it."
        )
    if config.get("quantization_config"):
        raise Unsupported("its weights are quantised already. Use a .gguf of it, or the unquantised checkpoint.")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise Unsupported("it has biases, which Llama models do not.")
    if config.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"its activation is {config['hidden_act']}, and Llama models use silu.")
    # transformers 5 writes one `rope_parameters`; 4 wrote `rope_theta` and `rope_scaling`.
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    heads = config["num_attention_heads"]
    return _Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        feed_forward=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        context=config["max_position_embeddings"],
        vocabulary=config["vocab_size"],
        epsilon=config["rms_norm_eps"],
        rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        rope=rope,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _add_shape(writer: gguf.GGUFWriter, name: str, shape: _Shape) -> None:
    writer.add_name(name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    if _rope_kind(shape) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(shape.rope["factor"]))


def _rope_kind(shape: _Shape) -> str:
    kind = str(shape.rope.get("rope_type") or shape.rope.get("type") or "default")
    if kind not in ("default", "llama3", "linear"):
        raise Unsupported(f"its rope scaling is {kind}, and only llama3 and linear are converted. Use a .gguf of it.")
    return kind


def _llama3_factors(shape: _Shape) -> npt.NDArray[np.float32]:
    """Divisors of the rope frequencies, by which Llama 3.1 and later stretch their window."""
    rope = shape.rope
    factor, original = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
    wavelengths = 2 * np.pi * shape.rope_theta**exponents
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _tensors(source: Path, shape: _Shape, stack: ExitStack) -> Iterator[_Tensor]:
    if _rope_kind(shape) == "llama3":
        factors = _llama3_factors(shape)
        yield _Tensor("rope_freqs.weight", factors.shape, lambda: factors)
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise Unsupported("it holds no .safetensors file.")
    found = set()
    for path in files:
        file = stack.enter_context(safe_open(path, "pt"))
        for key in file.keys():  # noqa: SIM118
            name = _name(key)
            if name is None or (name == "output.weight" and shape.tied):
                continue
            found.add(name)
            size = tuple(file.get_slice(key).get_shape())
            yield _Tensor(name, size, lambda file=file, key=key: _read(file, key, shape))  # type: ignore[misc]
    wanted = {f"blk.{layer}.{part}.weight" for layer in range(shape.layers) for part in _BLOCK.values()}
    wanted |= {"token_embd.weight", "output_norm.weight"} | (set() if shape.tied else {"output.weight"})
    if missing := sorted(wanted - found):
        raise Unsupported(f"{len(missing)} tensors are missing, for example {missing[0]}; is the download whole?")


def _name(key: str) -> str | None:
    stem = key.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight"
    if stem.endswith("rotary_emb.inv_freq"):
        return None
    parts = stem.split(".", 3)
    if parts[:2] == ["model", "layers"] and len(parts) == 4 and parts[3] in _BLOCK and key.endswith(".weight"):
        return f"blk.{int(parts[2])}.{_BLOCK[parts[3]]}.weight"
    raise Unsupported(f"it has a tensor that Llama models do not have: {key}.")


def _read(file: Any, key: str, shape: _Shape) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = file.get_tensor(key).float().numpy()
    for projection, heads in ((".q_proj.", shape.heads), (".k_proj.", shape.kv_heads)):
        if projection in key:
            # llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
            split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))
    return values


def _remove_abandoned(target: Path) -> None:
    """Removes what a killed conversion to the same file left."""
    for part in target.parent.glob(f"{target.name}.*.part"):
        pid = part.name.rsplit(".", 2)[1]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, ValueError):
            part.unlink(missing_ok=True)
        except PermissionError:
            continue


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Unsupported(f"it has no {path.name}.") from None
    except ValueError:
        raise Unsupported(f"its {path.name} is not JSON.") from None
    if not isinstance(content, dict):
        raise Unsupported(f"its {path.name} is not an object.")
    return content


def main() -> None:
    """Converts as the command line says."""
    kind = os.fstat(0).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        child.die_with_parent()
    parser = argparse.ArgumentParser(description="Converts a Hugging Face Llama checkpoint to GGUF.")
    parser.add_argument("source", type=Path, help="folder with config.json, tokenizer.json and *.safetensors")
    parser.add_argument("target", type=Path, help="the GGUF file to write")
    parser.add_argument("--type", choices=sorted(_TYPES), default="q8_0", help="precision of matrices")
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.target, arguments.type)
    except Unsupported as reason:
        print(reason, file=sys.stderr)
        sys.exit(2)
    except (OSError, KeyError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
