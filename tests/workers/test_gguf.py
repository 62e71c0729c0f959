"""Conversion of Hugging Face checkpoints, compared with transformers on tiny random models."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llamastead.internal.v1 import engine_pb2
from llamastead_server.adapters.gguf_conversion import GgufConversion
from llamastead_server.domain.errors import NotSupported
from llamastead_server.domain.models.generation import Message
from llamastead_server.domain.models.gguf_header import read_header
from llamastead_server.workers.gguf import convert
from llamastead_server.workers.gguf_tokenizer import Unsupported
from llamastead_server.workers.llamacpp import LlamaCpp, LoadOptions

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEXT = "It's 12345 naïve cafés, isn't it?\n\n  日本語 👩‍👩‍👧 — end.\n"
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def tokenizer() -> Any:
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [Path(__file__).read_text(), TEXT],
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    wrapped: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, bos_token=SPECIAL[0], eos_token=SPECIAL[4]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make(folder: Path, **changes: Any) -> tuple[Any, Any]:
    words = tokenizer()
    words.save_pretrained(folder)
    ids: Any = {text: words.convert_tokens_to_ids(text) for text in SPECIAL}
    options: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    config = LlamaConfig(
        vocab_size=len(words) + 3,
        bos_token_id=ids[SPECIAL[0]],
        eos_token_id=[ids[SPECIAL[1]], ids[SPECIAL[4]]],
        **(options | changes),
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.eval()
    model.save_pretrained(folder)
    return words, model


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("tied") / "tiny"
    words, model = make(folder)
    return folder, words, model


async def loaded(file: Path, folder: Path) -> LlamaCpp:
    model = LlamaCpp(LoadOptions(file, 256, 1, 1), folder)
    # llama.cpp misses a stop that comes before its queue has begun to run, and then waits for itself for ever.
    await logprobs(model, [1])
    return model


async def logprobs(model: LlamaCpp, prompt: list[int]) -> dict[int, float]:
    request = engine_pb2.GenerateRequest(max_tokens=1, top_logprobs=20, sampling=engine_pb2.Sampling(temperature=0))
    async for events in model.complete(prompt, request):
        for event in events:
            if event.get("completion_probabilities"):
                return {top["id"]: top["logprob"] for top in event["completion_probabilities"][0]["top_logprobs"]}
    raise AssertionError("no probabilities")


async def compare(source: Path, words: Any, model: Any, folder: Path) -> None:
    target = folder / "m.gguf"
    convert(source, target, "f16")
    engine = await loaded(target, folder)
    ids = words.encode(TEXT, add_special_tokens=False)
    assert await engine.encode_text(TEXT) == ids
    prompt = (ids * 8)[:200]
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1)
    found = await logprobs(engine, prompt)
    assert len(found) == 20
    assert max(abs(float(expected[token]) - value) for token, value in found.items()) < 0.05
    assert int(expected.argmax()) == max(found, key=lambda token: found[token])


async def test_token_ids_and_logits_agree_with_transformers(tied: tuple[Path, Any, Any], tmp_path: Path) -> None:
    await compare(*tied, tmp_path)


async def test_llama_3_rope_scaling_and_an_untied_head_agree_too(tmp_path: Path) -> None:
    rope = {**LLAMA_3_ROPE, "rope_theta": 500000.0}
    words, model = make(tmp_path / "hf", rope_parameters=rope, tie_word_embeddings=False)
    await compare(tmp_path / "hf", words, model, tmp_path)


async def test_a_config_of_transformers_4_means_the_same(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    words, model = make(source, rope_parameters={**LLAMA_3_ROPE, "rope_theta": 500000.0})
    config = json.loads((source / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    (source / "config.json").write_text(json.dumps(config))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["chat_template"] = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    await compare(source, words, model, tmp_path)
    assert read_header(tmp_path / "m.gguf").metadata["tokenizer.chat_template"] == TEMPLATE


async def test_a_conversation_is_encoded_as_transformers_does(tied: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, words, _ = tied
    convert(folder, tmp_path / "m.gguf")
    engine = await loaded(tmp_path / "m.gguf", tmp_path)
    messages = [
        Message("system", "Be kind.\n"),
        Message("user", "  12 cafés?"),
        Message("assistant", "日本"),
        Message("user", "ok"),
    ]
    rendered = words.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert await engine.encode_conversation(messages) == words.encode(rendered, add_special_tokens=False)


async def test_a_typed_control_token_becomes_characters_and_never_the_token(
    tied: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    folder, words, _ = tied
    convert(folder, tmp_path / "m.gguf")
    engine = await loaded(tmp_path / "m.gguf", tmp_path)
    control = {words.convert_tokens_to_ids(text) for text in SPECIAL}
    harmless = await engine.encode_conversation([Message("user", "ab")])
    for text in SPECIAL:
        hostile = await engine.encode_conversation([Message("user", f"a{text}b")])
        assert [token for token in hostile if token in control] == [token for token in harmless if token in control]
        assert f"a{text}b" in words.decode(hostile)
        assert not control & set(await engine.encode_text(text))


def test_both_ends_are_kept_and_filler_is_unused(tied: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, words, _ = tied
    convert(folder, tmp_path / "m.gguf")
    kinds = "tokenizer.ggml.token_type"
    header = read_header(tmp_path / "m.gguf", arrays=frozenset({kinds}))
    assert header.metadata["tokenizer.ggml.eos_token_id"] == words.convert_tokens_to_ids(SPECIAL[1])
    assert header.metadata["tokenizer.ggml.eot_token_id"] == words.convert_tokens_to_ids(SPECIAL[4])
    assert header.metadata[kinds][-3:] == [5, 5, 5]
    assert header.context_length == 512


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised already"),
        ({"attention_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"num_hidden_layers": 9}, "missing"),
        ({"eos_token_id": None}, "end-of-sequence"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason_and_leaves_no_file(
    tied: tuple[Path, Any, Any], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    source = tmp_path / "hf"
    shutil.copytree(tied[0], source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    (source / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(Unsupported, match=reason):
        convert(source, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_unknown_splitter_is_refused(tied: tuple[Path, Any, Any], tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(tied[0], source)
    words = json.loads((source / "tokenizer.json").read_text())
    words["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "."
    (source / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(Unsupported, match="splits text"):
        convert(source, tmp_path / "m.gguf")


async def test_a_folder_is_converted_once_and_again_when_it_changed(
    tied: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    source = tmp_path / "hf"
    shutil.copytree(tied[0], source)
    conversion = GgufConversion(tmp_path / ".converted")
    first = await conversion.converted(source)
    made = first.stat().st_mtime_ns
    assert await conversion.converted(source) == first
    assert first.stat().st_mtime_ns == made
    (source / "chat_template.jinja").write_text(TEMPLATE + " ")
    second = await conversion.converted(source)
    assert second != first
    assert list((tmp_path / ".converted").iterdir()) == [second]


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o775])
async def test_a_copy_may_be_read_by_whoever_may_read_the_models(
    tied: tuple[Path, Any, Any], tmp_path: Path, mode: int
) -> None:
    source = tmp_path / "hf"
    shutil.copytree(tied[0], source)
    tmp_path.chmod(mode)
    umask = os.umask(0o077)
    try:
        copy = await GgufConversion(tmp_path / ".converted").converted(source)
    finally:
        os.umask(umask)
    assert copy.parent.stat().st_mode & 0o777 == mode
    assert copy.stat().st_mode & 0o777 == mode & 0o666


async def test_a_refusal_reaches_the_caller_in_words(tied: tuple[Path, Any, Any], tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(tied[0], source)
    (source / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    with pytest.raises(NotSupported, match="Qwen2ForCausalLM"):
        await GgufConversion(tmp_path / ".converted").converted(source)


async def test_a_killed_conversion_leaves_nothing_that_is_taken_for_a_model(
    tied: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    target = tmp_path / "m.gguf"
    command = [sys.executable, "-m", "llamastead_server.workers.gguf", str(tied[0]), str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        while process.poll() is None and not list(tmp_path.iterdir()):
            await asyncio.sleep(0.001)
        process.kill()
    assert not target.exists() or read_header(target).parameters
    convert(tied[0], target)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
