"""A model folder as ExLlamaV2 reads it right, whichever version of transformers wrote its config.json.

ExLlamaV2 takes the rope settings from two places only and silently uses defaults otherwise, insists on one
architecture and ignores rope scalings it does not know. So it gets a folder of links to the model's files with a
repaired config.json; the model's own folder is never touched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_LAYER_KINDS = ("full_attention", "sliding_attention")
_KNOWN_SCALINGS = ("linear", "llama3")
_UNSCALED = ("default", "dynamic")
"""Dynamic scaling changes nothing within the window that the config gives, and no window here is longer."""


class Unsupported(ValueError):
    """ExLlamaV2 would not run the model as it was trained; the message completes "it cannot be loaded: ..."."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; one that is not there is empty.

    Raises:
        Unsupported: The file is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise Unsupported(f"its {path.name} is not JSON.") from None
    if not isinstance(content, dict):
        raise Unsupported(f"its {path.name} is not an object.")
    return content


def staged(source: Path, target: Path) -> dict[str, Any]:
    """Makes `target` a folder of links to the model's files, with the repaired config; returns that.

    Raises:
        Unsupported: The model is of a kind that ExLlamaV2 does not run right.
    """
    config = read_json(source / "config.json")
    if not config:
        raise Unsupported("it has no config.json.")
    if not (source / "tokenizer.json").exists():
        raise Unsupported("it has no tokenizer.json.")
    fixed = repaired(config, read_json(source / "generation_config.json"))
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.name != "config.json":
            (target / file.name).symlink_to(file.resolve())
    (target / "config.json").write_text(json.dumps(fixed))
    return fixed


def repaired(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """The config in the form that ExLlamaV2 0.3.2 reads completely.

    Raises:
        Unsupported: It would be run other than it was trained.
    """
    _check_weights(config)
    fixed = dict(config)
    fixed["architectures"] = [_architecture(config)]
    _repair_rope(fixed)
    if isinstance(text := config.get("text_config"), dict):
        fixed["text_config"] = dict(text)
        _repair_rope(fixed["text_config"])
    if ends := end_tokens(config, generation):
        fixed["eos_token_id"] = ends[0]
    if not isinstance(fixed.get("bos_token_id"), int):
        fixed.pop("bos_token_id", None)
        if isinstance(begin := generation.get("bos_token_id"), int):
            fixed["bos_token_id"] = begin
    _check_shape({**fixed, **fixed.get("text_config", {})})
    return fixed


def end_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
    """Every token that ends an answer, each once: what generation is configured with first."""
    found: list[int] = []
    for source in (generation, config, config.get("text_config") or {}):
        value = source.get("eos_token_id")
        found.extend(end for end in (value if isinstance(value, list) else [value]) if isinstance(end, int))
    return list(dict.fromkeys(found))


def _architecture(config: Mapping[str, Any]) -> str:
    named = [name for name in config.get("architectures") or () if isinstance(name, str)]
    if named:
        return next((name for name in named if name.endswith("ForCausalLM")), named[0])
    kind = config.get("model_type")
    if kind in _ARCHITECTURES:
        return _ARCHITECTURES[kind]
    raise Unsupported(f"its config.json names no architecture, and its model_type is {kind!r}.")


def _repair_rope(config: dict[str, Any]) -> None:
    """Puts `rope_parameters` (transformers 5) where `rope_theta` and `rope_scaling` (4) were."""
    newer = config.pop("rope_parameters", None) or {}
    if any(kind in newer for kind in _LAYER_KINDS):
        raise Unsupported("its rope settings differ between layers.")
    older = config.pop("rope_scaling", None) or {}
    rope = {**newer, **older}
    theta, partial = rope.pop("rope_theta", None), rope.pop("partial_rotary_factor", None)
    if theta is not None and config.get("rope_theta") is None:
        config["rope_theta"] = float(theta)
    if partial is not None and config.get("partial_rotary_factor") is None:
        config["partial_rotary_factor"] = float(partial)
    older_name = rope.pop("type", None)
    kind = rope.pop("rope_type", None) or older_name or "default"
    if kind in _UNSCALED:
        return
    if kind not in _KNOWN_SCALINGS:
        raise Unsupported(f"its rope scaling is {kind!r}, and only {' and '.join(_KNOWN_SCALINGS)} are run right.")
    needed: Sequence[str] = ["factor"]
    if kind == "llama3":
        needed = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    if missing := [name for name in needed if not isinstance(rope.get(name), int | float)]:
        raise Unsupported(f"its {kind} rope scaling lacks {', '.join(missing)}.")
    config["rope_scaling"] = {**rope, "rope_type": kind}


def _check_weights(config: Mapping[str, Any]) -> None:
    """Refuses quantised weights that would be taken for others of the same names."""
    packed = config.get("quantization_config") or {}
    method, bits = packed.get("quant_method"), packed.get("bits")
    if method not in (None, "exl2", "gptq"):
        raise Unsupported(f"its weights are quantised by {method!r}, and only EXL2 and GPTQ are run here.")
    if method == "gptq" and bits not in (None, 4):
        raise Unsupported(f"its GPTQ weights have {bits} bits, and only 4 are run here.")


def _check_shape(config: Mapping[str, Any]) -> None:
    """Refuses the widths that the GPU kernels would read out of step."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or not heads:
        raise Unsupported("its config.json gives no hidden_size or num_attention_heads.")
    key_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or hidden // heads
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": config.get("intermediate_size") or 32,
        "width of its keys": key_heads * width,
        "width of its heads": width,
    }
    for name, size in sizes.items():
        if size % 32:
            raise Unsupported(f"the {name} is {size}, and the GPU kernels take multiples of 32.")
    if width > 256:
        raise Unsupported(f"its heads are {width} wide, and the GPU kernels take at most 256.")
