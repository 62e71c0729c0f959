"""Writes the trained folder as a GGUF file and checks that both give the same text."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from tiny_model.lessons import Limits, Teacher
from tiny_model.prompt import BEGIN_OF_TEXT, CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, PADDING, Message
from tiny_model.tokenizer import Encoder, load_tokenizer
from tiny_model.training import load_model

LAYER_TENSORS = {
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
TOP_TENSORS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
MATRIX_TYPE = gguf.GGMLQuantizationType.Q8_0
LARGEST_FILE = 12_000_000


def _gguf_name(name: str) -> str:
    if name in TOP_TENSORS:
        return TOP_TENSORS[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_TENSORS[rest.removesuffix('.weight')]}.weight"


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key matrix.

    Hugging Face rotates the two halves of a head against each other, llama.cpp
    rotates neighbours.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    description = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    ids = dict(description["model"]["vocab"])
    special = {token["content"]: token["id"] for token in description["added_tokens"]}
    ids |= special
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    merges = [m if isinstance(m, str) else " ".join(m) for m in description["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(special[BEGIN_OF_TEXT])
    writer.add_eos_token_id(special[END_OF_TEXT])
    writer.add_eot_token_id(special[END_OF_TURN])
    writer.add_pad_token_id(special[PADDING])
    writer.add_add_bos_token(False)  # the template writes it
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(folder: Path, target: Path) -> None:
    """Write the Hugging Face folder as one GGUF file, matrices as Q8_0."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name("Llamastead Tiny 4M")
    writer.add_description("A very small demonstration model that repeats sentences from documents.")
    writer.add_license("Apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, folder)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        if name == "lm_head.weight":  # tied to the embedding
            continue
        weight = tensor.float().numpy()
        for projection, count in heads.items():
            if projection in name:
                weight = _interleaved(weight, count)
        if weight.ndim == 1:
            writer.add_tensor(_gguf_name(name), weight)
        else:
            packed = gguf.quants.quantize(np.ascontiguousarray(weight), MATRIX_TYPE)
            writer.add_tensor(_gguf_name(name), packed, raw_dtype=MATRIX_TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    size = partial.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{partial} has {size} bytes, more than the {LARGEST_FILE} that may ship")
    partial.replace(target)
    print(f"{target.name}: {size / 1e6:.2f} MB")


def _check_conversations(count: int) -> list[list[Message]]:
    teacher = Teacher(seed=4242)
    fixed = [
        [Message("system", "You are a helpful assistant."), Message("user", "Who are you?")],
        [Message("user", "Hello!")],
        [Message("user", "Count to ten")],
    ]
    drawn = [teacher.reading(Limits(20, 3))[:-1] for _ in range(count // 2)]
    drawn += [teacher.chatting()[:-1] for _ in range(count - count // 2)]
    return fixed + drawn


def check_gguf(folder: Path, target: Path, count: int = 40, new_tokens: int = 64) -> int:
    """Compare greedy answers of llama.cpp with those of transformers; return how many agree."""
    import xllamacpp

    model, tokenizer = load_model(folder), load_tokenizer(folder)
    encoder = Encoder(tokenizer)
    params = xllamacpp.CommonParams()
    params.model.path = str(target)
    params.n_parallel, params.n_ctx, params.n_batch = 1, 2048, 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity, params.ui, params.fit_params, params.cache_ram_mib = 0, False, False, 0
    params.api_keys = [secrets.token_hex(16)]  # the server opens a port on this machine
    server = xllamacpp.Server(params)
    conversations = _check_conversations(count)
    agreed = 0
    for conversation in conversations:
        ids = torch.tensor([encoder.prompt(conversation)])
        with torch.no_grad():
            full = model.generate(  # type: ignore[misc]
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
            )
        expected = str(tokenizer.decode(full[0, ids.shape[1] :], skip_special_tokens=True))
        request = {
            "messages": [{"role": m.role, "content": m.content} for m in conversation],
            "max_tokens": new_tokens,
            "temperature": 0.0,
        }
        answer = server.handle_chat_completions(request)
        if answer["usage"]["prompt_tokens"] != ids.shape[1]:
            raise ValueError(f"llama.cpp counts {answer['usage']} tokens, transformers {ids.shape[1]}")
        text = answer["choices"][0]["message"]["content"]
        if text.strip() == expected.strip():
            agreed += 1
        else:
            print(f"  differs: {expected!r} in transformers, {text!r} in llama.cpp")
    print(f"{agreed} of {len(conversations)} greedy answers equal those of transformers")
    return agreed
