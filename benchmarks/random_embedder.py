"""Makes a tiny embedding model with random weights: a server for a benchmark of generation needs some model."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WIDTH = 16


def make(folder: Path) -> Path:
    """Writes it into `folder`, unless it is there; returns that."""
    if not (folder / "modules.json").exists():
        letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
        vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *letters])}
        words = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=_WIDTH, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=_WIDTH, max_position_embeddings=128,
        )  # fmt: skip
        plain = folder.with_name(f"{folder.name}-plain")
        BertModel(config).save_pretrained(plain)
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # as transformers has it
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            mask_token="[MASK]", model_max_length=128,
        ).save_pretrained(plain)  # fmt: skip
        transformer = Transformer(str(plain), max_seq_length=128)
        SentenceTransformer(modules=[transformer, Pooling(_WIDTH)], device="cpu").save(str(folder))
    return folder
