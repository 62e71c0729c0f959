"""The training loop: a curriculum of lessons, with the loss on the assistant's turns."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_model.curriculum import Course, Stage
from tiny_model.lessons import Teacher
from tiny_model.prompt import BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN, PADDING
from tiny_model.tokenizer import VOCABULARY, Encoder, token_id

WINDOW = 2048
ROPE_THETA = 10000.0
IGNORED = -100
POOL = 384


@dataclass(frozen=True)
class Settings:
    """What a training run depends on, apart from its course."""

    seed: int = 7
    threads: int = 2
    weight_decay: float = 0.05
    scale: float = 1.0
    report_every: int = 50
    save_every: int = 250


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained model. Its shapes suit every engine of the server.

    Head size and widths are multiples of 32 and the window is a multiple of 256, which
    ExLlamaV2 needs; `rope_theta` also stands at the top of the config, where it looks.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=WINDOW,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=token_id(tokenizer, BEGIN_OF_TEXT),
        eos_token_id=[
            token_id(tokenizer, END_OF_TEXT),
            token_id(tokenizer, END_OF_TURN),
        ],
        pad_token_id=token_id(tokenizer, PADDING),
    )
    return LlamaForCausalLM(config)


class Batches:
    """An endless supply of batches for one stage after another."""

    def __init__(self, encoder: Encoder, seed: int) -> None:
        self.encoder = encoder
        self.teacher = Teacher(seed)
        self.random = random.Random(seed + 1)

    def _example(self, stage: Stage) -> tuple[list[int], list[bool]]:
        draw = self.random.random()
        if draw < stage.copying:
            return self.encoder.conversation(self.teacher.copying())
        if draw < stage.copying + stage.chatting:
            return self.encoder.conversation(self.teacher.chatting())
        if draw < stage.copying + stage.chatting + stage.prose:
            ids = [self.encoder.begin, *self.encoder.text(self.teacher.prose())]
            return ids, [False] + [True] * (len(ids) - 1)
        return self.encoder.conversation(self.teacher.reading(stage.limits))

    def of(self, stage: Stage) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield inputs and targets, examples of like length together."""
        while True:
            pool = [self._example(stage) for _ in range(POOL)]
            pool = sorted((p for p in pool if len(p[0]) <= WINDOW), key=lambda p: len(p[0]))
            groups: list[list[tuple[list[int], list[bool]]]] = [[]]
            for example in pool:
                if len(example[0]) * (len(groups[-1]) + 1) > stage.batch_tokens and groups[-1]:
                    groups.append([])
                groups[-1].append(example)
            self.random.shuffle(groups)
            yield from map(pad, groups)


def pad(group: list[tuple[list[int], list[bool]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack examples. Padding stands on the right, where causal attention never looks."""
    width = max(len(ids) for ids, _ in group)
    inputs = torch.zeros(len(group), width, dtype=torch.long)
    targets = torch.full((len(group), width), IGNORED)
    for row, (ids, learned) in enumerate(group):
        inputs[row, : len(ids)] = torch.tensor(ids)
        following = [token if use else IGNORED for token, use in zip(ids[1:], learned[1:], strict=True)]
        targets[row, : len(ids) - 1] = torch.tensor(following)
    return inputs, targets


def answer_logits(model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the logits where something is to be learned; the rest need not be computed."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(hidden[targets != IGNORED])
    return logits.float()


def _optimizers(model: LlamaForCausalLM, rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices,
        lr=rate,
        weight_decay=weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


def rate_factor(progress: float, hold: float) -> float:
    """Rise for two percent of a course, hold, and fall to the end."""
    if progress < 0.02:
        return max(progress / 0.02, 0.01)
    return 1.0 if progress < hold else max(0.03, (1.0 - progress) / (1.0 - hold))


def train(
    model: LlamaForCausalLM,
    encoder: Encoder,
    course: Course,
    settings: Settings,
    save: Callable[[], None],
    report: Callable[[str], None] = print,
) -> None:
    """Take the model through a course."""
    torch.set_num_threads(settings.threads)
    batches = Batches(encoder, settings.seed)
    optimizers = _optimizers(model, course.learning_rate, settings.weight_decay)
    total = course.tokens * settings.scale
    seen, step, started = 0, 0, time.monotonic()
    losses: list[float] = []
    model.train()
    for number, stage in enumerate(course.stages):
        end_of_stage = seen + stage.tokens * settings.scale
        for inputs, targets in batches.of(stage):
            factor = rate_factor(seen / total, course.hold)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = course.learning_rate * factor
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = answer_logits(model, inputs, targets)
            loss = cross_entropy(logits, targets[targets != IGNORED])
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            seen += inputs.numel()
            step += 1
            losses.append(loss.item())
            if step % settings.report_every == 0:
                seconds = time.monotonic() - started
                average = sum(losses) / len(losses)
                losses.clear()
                report(
                    f"stage {number} step {step} tokens {seen / 1e6:.2f} M loss {average:.4f} "
                    f"{seen / seconds:.0f} tokens/s {seconds / 60:.1f} min"
                )
            if step % settings.save_every == 0:
                save()
            if seen >= end_of_stage:
                break
    save()


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the Hugging Face form: weights in bfloat16, config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    _amend(folder / "config.json", rope_theta=ROPE_THETA, dtype="bfloat16", torch_dtype="bfloat16")
    _amend(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", model_max_length=WINDOW)


def _amend(path: Path, **values: object) -> None:
    """Set values in a JSON file that programs older than transformers 5 look for."""
    content = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def load_model(folder: Path) -> LlamaForCausalLM:
    """Read a trained model for measuring."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model
