"""Configs of every kind, read by the real ExLlamaV2 after their repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamastead_server.workers.exllama_config import Unsupported, end_tokens, repaired, staged
from tests.workers import exllama_stub
from tests.workers.exllama_cpu import make_model

exllama_stub.install()
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def read(folder: Path) -> Any:
    """What ExLlamaV2 makes of a folder."""
    import exllamav2

    config = exllamav2.ExLlamaV2Config()
    config.model_dir = str(folder)
    config.prepare()
    return config


def frequencies(folder: Path) -> torch.Tensor:
    from exllamav2 import rope

    config = read(folder)
    values, scale = rope.get_rope_params(torch.device("cpu"), config, config.rotary_embedding_base)
    assert scale == 1.0
    return torch.Tensor(values)


def transformers_frequencies(folder: Path) -> torch.Tensor:
    return torch.Tensor(LlamaRotaryEmbedding(LlamaConfig.from_pretrained(folder)).inv_freq)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {**LLAMA_3_ROPE, "rope_theta": 500000.0},
        {"rope_type": "default", "rope_theta": 10000},
    ],
)
@pytest.mark.parametrize("version", [4, 5])
def test_rope_is_that_of_transformers_whichever_version_wrote_it(
    tmp_path: Path, rope: dict[str, Any], version: int
) -> None:
    source = tmp_path / "hf"
    make_model(source, rope_parameters=dict(rope), max_position_embeddings=512)
    expected = transformers_frequencies(source)
    config = json.loads((source / "config.json").read_text())
    assert "rope_parameters" in config
    if version == 4:
        older = config.pop("rope_parameters")
        config["rope_theta"] = older.pop("rope_theta")
        config["rope_scaling"] = older if older["rope_type"] != "default" else None
        (source / "config.json").write_text(json.dumps(config))
    staged(source, tmp_path / "staged")
    assert torch.allclose(frequencies(tmp_path / "staged"), expected)


def test_without_repair_the_engine_would_use_another_rope_silently(tmp_path: Path) -> None:
    make_model(tmp_path, rope_parameters={**LLAMA_3_ROPE, "rope_theta": 500000.0}, max_position_embeddings=512)
    assert not torch.allclose(frequencies(tmp_path), transformers_frequencies(tmp_path))


def test_linear_scaling_is_kept(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    staged(tmp_path / "hf", tmp_path / "staged")
    assert read(tmp_path / "staged").scale_pos_emb == 4.0


@pytest.mark.parametrize("scaling", [{"type": "linear", "rope_type": "linear", "factor": 2.0}, {"type": "llama3"} | {
    key: value for key, value in LLAMA_3_ROPE.items() if key != "rope_type"}])  # fmt: skip
def test_both_names_of_the_scaling_become_one(scaling: dict[str, Any]) -> None:
    fixed = repaired({**BASE, "rope_scaling": scaling}, {})
    assert "type" not in fixed["rope_scaling"]
    assert fixed["rope_scaling"]["rope_type"] in ("linear", "llama3")


def test_dynamic_scaling_changes_nothing_within_the_window() -> None:
    fixed = repaired({**BASE, "rope_theta": 5e5, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, {})
    assert "rope_scaling" not in fixed
    assert fixed["rope_theta"] == 5e5


def test_the_folder_has_every_file_and_the_models_own_is_untouched(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    make_model(source)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    for _ in range(2):
        staged(source, tmp_path / "staged")
    assert {file.name for file in (tmp_path / "staged").iterdir()} == set(before)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    config = read(tmp_path / "staged")
    assert config.hidden_size == 64
    assert config.bos_token_id is not None


@pytest.mark.parametrize(
    ("named", "chosen"),
    [
        (["LlamaForCausalLM"], "LlamaForCausalLM"),
        (["LlamaModel", "LlamaForCausalLM"], "LlamaForCausalLM"),
        (None, "LlamaForCausalLM"),
        ([], "LlamaForCausalLM"),
    ],
)
def test_one_architecture_is_left(tmp_path: Path, named: Any, chosen: str) -> None:
    source = tmp_path / "hf"
    make_model(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": named}))
    staged(source, tmp_path / "staged")
    assert read(tmp_path / "staged").architecture == chosen


def test_several_ends_are_all_kept_and_each_once() -> None:
    config = {**BASE, "eos_token_id": [5, 7], "bos_token_id": None}
    generation = {"eos_token_id": [7, 9], "bos_token_id": 3}
    assert end_tokens(config, generation) == [7, 9, 5]
    assert end_tokens({**BASE, "eos_token_id": 4}, {}) == [4]
    assert end_tokens(BASE, {}) == []
    fixed = repaired(config, generation)
    assert (fixed["eos_token_id"], fixed["bos_token_id"]) == (7, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "between layers"),
        ({"architectures": None, "model_type": "gpt9"}, "gpt9"),
        ({"hidden_size": 72}, "hidden_size is 72"),
        ({"head_dim": 16, "num_key_value_heads": 2}, "heads is 16"),
        ({"head_dim": 512}, "512 wide"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "'awq'"),
        ({"quantization_config": {"quant_method": "exl3", "bits": 4.0}}, "'exl3'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "GPTQ weights have 8 bits"),
    ],
)
def test_what_would_run_other_than_it_was_trained_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        repaired({**BASE, **change}, {})


@pytest.mark.parametrize(("file", "reason"), [("config.json", "config.json"), ("tokenizer.json", "tokenizer.json")])
def test_a_missing_file_is_named(tmp_path: Path, file: str, reason: str) -> None:
    make_model(tmp_path / "hf")
    (tmp_path / "hf" / file).unlink()
    with pytest.raises(Unsupported, match=reason):
        staged(tmp_path / "hf", tmp_path / "staged")
    (tmp_path / "hf" / "config.json").write_text("[1]")
    with pytest.raises(Unsupported, match=r"config\.json"):
        staged(tmp_path / "hf", tmp_path / "staged")
