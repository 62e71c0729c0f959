"""The random model of the GPU's benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.random_hf_llama import SHAPES, make
from benchmarks.random_llama import prompt
from llamastead_server.domain.models.generation import Message
from llamastead_server.workers.exllama_config import read_json, repaired
from llamastead_server.workers.hf_tokenizer import HfTokenizer


async def test_prompts_have_the_length_they_are_meant_to_have_and_answers_never_end(tmp_path: Path) -> None:
    folder = make(tmp_path, SHAPES["tiny"])
    config = read_json(folder / "config.json")
    assert repaired(config, {})["eos_token_id"] == config["eos_token_id"][0]
    tokenizer = HfTokenizer(folder, config)
    sizes = {len(await tokenizer.encode_conversation([Message("user", prompt(str(seed), 128))])) for seed in range(5)}
    assert len(sizes) == 1
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = await tokenizer.encode_conversation([Message("user", prompt("x", 16))])
    with torch.inference_mode():
        written = model.generate(torch.tensor([tokens]), max_new_tokens=40, do_sample=False, eos_token_id=None)
    answer = written[0, len(tokens) :].tolist()
    assert len(answer) == 40
    assert not set(answer) & (set(config["eos_token_id"]) | tokenizer.control_tokens)
    text = b"".join(map(tokenizer.bytes_of, answer)).decode()
    assert text.strip()


def test_it_is_made_once(tmp_path: Path) -> None:
    folder = make(tmp_path, SHAPES["tiny"])
    (folder / "tokenizer_config.json").write_text(json.dumps({"kept": True}))
    assert make(tmp_path, SHAPES["tiny"]) == folder
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"kept": True}
