"""A tiny Llama under ExLlamaV2's real generator on the CPU: only the layers' arithmetic is PyTorch's."""

from __future__ import annotations

import copy
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llamastead_server.domain.models.gpu_settings import GpuSettings
from llamastead_server.workers import exllama_config, paged_attention
from llamastead_server.workers.exllama_build import Report
from llamastead_server.workers.exllama_loading import Loaded, Source, configure, end_tokens, generator_options
from llamastead_server.workers.exllama_memory import Plan, Shape, plan
from llamastead_server.workers.hf_tokenizer import HfTokenizer
from tests.workers import exllama_stub

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = (Path(__file__).parent.parent.parent / "LICENSE").read_text()
PAGE = 256


def make_tokenizer() -> Any:
    words = Tokenizer(models.BPE(ignore_merges=True))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator([TEXT, "Once upon a time 日本語 12 cafés"], trainer)
    words.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    words.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    wrapped: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, bos_token=SPECIAL[0], eos_token=SPECIAL[4]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_model(folder: Path, *, seed: int = 0, vocabulary: int | None = None, **changes: Any) -> tuple[Any, Any]:
    """Writes a random Llama; returns its tokenizer and the model itself, in half precision as it was written.

    Args:
        folder: Made if need be.
        seed: Of its weights.
        vocabulary: Rows of its matrices; as many as the tokenizer has tokens by default.
        changes: To its config.
    """
    words = make_tokenizer()
    words.save_pretrained(folder)
    ids: Any = {text: words.convert_tokens_to_ids(text) for text in SPECIAL}
    options: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    config = LlamaConfig(
        vocab_size=vocabulary or len(words),
        bos_token_id=ids[SPECIAL[0]],
        eos_token_id=[ids[SPECIAL[1]], ids[SPECIAL[4]]],
        **copy.deepcopy(options | changes),
    )
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(config)
    model.half().save_pretrained(folder)
    return words, model.float().eval()


class CpuCache:
    """ExLlamaV2's cache without its GPU."""

    batch_size = 1
    current_seq_len = 0

    def __init__(self, config: Any, tokens: int) -> None:
        self.max_seq_len = tokens
        shape = (1, tokens, config.num_key_value_heads, config.head_dim)
        # What was never written must never be seen.
        self.keys, self.values = (
            [torch.full(shape, 1e4) for _ in range(config.num_hidden_layers)] for _ in ("keys", "values")
        )

    def all_tensors(self) -> list[torch.Tensor]:
        return self.keys + self.values

    def copy_states(
        self, target: CpuCache, from_column: int, from_columns: int, to_column: int, to_columns: int, *_: int
    ) -> None:
        for source, other in zip(self.all_tensors(), target.all_tensors(), strict=True):
            other[:, to_column : to_column + to_columns] = source[:, from_column : from_column + from_columns].clone()


class CpuModel:
    """Runs the layers; calls the paged attention exactly as ExLlamaV2's own attention layer does."""

    def __init__(self, config: Any, model: Any) -> None:
        self.config = config
        self._model = model
        self.chunks: list[tuple[int, int]] = []
        self.fail: Exception | None = None

    def forward_chunk(
        self, *, input_ids: torch.Tensor, attn_params: Any, cache: CpuCache, preprocess_only: bool = False, **_: Any
    ) -> dict[str, torch.Tensor]:
        if self.fail is not None:
            failure, self.fail = self.fail, None
            raise failure
        attention = importlib.import_module("exllamav2.attn")
        batch, tokens = input_ids.shape
        self.chunks.append((batch, tokens))
        inner = self._model.model
        state = inner.embed_tokens(input_ids)
        lengths, table = attn_params.cache_seqlens, attn_params.block_index
        positions = lengths.long()[:, None] + torch.arange(tokens)
        cos, sin = inner.rotary_emb(state, positions)
        for index, layer in enumerate(inner.layers):
            normed = layer.input_layernorm(state)
            own = layer.self_attn
            q, k, v = (
                part(normed).view(batch, tokens, -1, own.head_dim) for part in (own.q_proj, own.k_proj, own.v_proj)
            )
            q, k = (
                each.transpose(1, 2) for each in apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
            )
            pages = [each[index].view(-1, PAGE, k.shape[2], k.shape[3]) for each in (cache.keys, cache.values)]
            seen, new = lengths, {"k": k, "v": v}
            if attn_params.is_sequential:
                first = attn_params.first_index
                cache.keys[index][:, first : first + tokens] = k
                cache.values[index][:, first : first + tokens] = v
                seen, new = attn_params.cache_seqlens_after, {}
            result = attention.flash_attn_with_kvcache(
                q=q, k_cache=pages[0], v_cache=pages[1], cache_seqlens=seen, block_table=table, causal=True,
                softmax_scale=own.scaling, **new,
            )  # fmt: skip
            state = state + own.o_proj(result.reshape(batch, tokens, -1))
            state = state + layer.mlp(layer.post_attention_layernorm(state))
        logits = self._model.lm_head(inner.norm(state))
        padded = torch.zeros(batch, tokens, -(-logits.shape[-1] // 32) * 32)
        padded[..., : logits.shape[-1]] = logits
        return {"logits": padded}


@cache
def transformers_model(folder: Path) -> Any:
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


class CpuLoader:
    """Takes the place of `exllama_loading.load`."""

    def __init__(self, *, free: int = 64 << 20, before: Any = None) -> None:
        exllama_stub.install()
        self._free = free
        self._before = before
        self.models: list[CpuModel] = []
        self.generators: list[Any] = []
        self.plan: Plan | None = None

    def __call__(self, source: Source, settings: GpuSettings, report: Report) -> Loaded:
        if self._before is not None:
            self._before(report)
        import exllamav2

        from llamastead_server.workers.exllama_generator import Generator

        paged_attention.prepare_environment()
        paged_attention.install(importlib.import_module("exllamav2.attn"))
        repaired = exllama_config.staged(source.folder, source.private / "model")
        tokenizer = HfTokenizer(source.folder, repaired)
        shape = Shape.of(repaired)
        settings_with_room = settings.model_copy(update={"margin": 0.0})
        chosen = self.plan = plan(settings_with_room, shape, 0, [self._free])

        def put(folder: Path, staged: Path) -> tuple[Any, CpuModel, CpuCache]:
            config = exllamav2.ExLlamaV2Config()
            config.model_dir = str(staged)
            config.prepare()
            configure(config, settings, chosen)
            model = CpuModel(config, transformers_model(folder))
            self.models.append(model)
            return config, model, CpuCache(config, chosen.cache_tokens)

        config, model, cache = put(source.folder, source.private / "model")
        drafts: dict[str, Any] = {}
        if source.draft is not None:
            exllama_config.staged(source.draft, source.private / "draft")
            _, drafts["draft_model"], drafts["draft_cache"] = put(source.draft, source.private / "draft")
        words = exllamav2.ExLlamaV2Tokenizer(config)

        def make_generator() -> Any:
            options = generator_options(settings, chosen)
            generator = Generator(model=model, cache=cache, tokenizer=words, **drafts, **options)
            self.generators.append(generator)
            return generator

        vocabulary = min(tokenizer.size, shape.vocabulary)
        return Loaded(make_generator, tokenizer, chosen.window, vocabulary, end_tokens(source.folder, tokenizer))
