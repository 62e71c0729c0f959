"""What requests mean to the real sampler of ExLlamaV2."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llamastead.internal.v1 import engine_pb2
from llamastead_server.workers.exllama_sampling import Adjustments, Cut, log_probabilities, sampler_settings
from llamastead_server.workers.model import Refused
from tests.workers import exllama_stub

exllama_stub.install()
WORDS = 100


class Tokenizer:
    """What the sampler asks of a tokenizer."""

    eos_token_id = 0

    def get_vocab_size(self) -> int:
        return WORDS


def settings(**given: Any) -> Any:
    from exllamav2.generator import ExLlamaV2Sampler

    return ExLlamaV2Sampler.Settings(**sampler_settings(engine_pb2.Sampling(**given)))


def draws(given: dict[str, Any], logits: torch.Tensor, count: int = 4000) -> torch.Tensor:
    """How often the real sampler draws each token."""
    from exllamav2.generator import ExLlamaV2Sampler

    padded = torch.zeros(1, 1, 128)
    padded[0, 0, :WORDS] = logits
    Cut.of(engine_pb2.Sampling(**given)).apply(padded[0, 0, :WORDS])
    tally = torch.zeros(WORDS)
    chosen = settings(**given)
    for step in range(count):
        history = torch.zeros(1, 5, dtype=torch.long)
        drawn = ExLlamaV2Sampler.sample(padded.clone(), chosen, history, (step + 0.5) / count, Tokenizer())[0]
        tally[int(drawn)] += 1
    return tally / count


def test_absent_fields_are_neutral() -> None:
    logits = torch.randn(WORDS, generator=torch.Generator().manual_seed(0)) * 2
    assert torch.allclose(draws({}, logits), logits.softmax(0), atol=2e-3)
    plain = settings()
    assert plain.token_repetition_penalty == 1.0
    assert (plain.top_k, plain.top_p, plain.min_p, plain.temperature) == (0, 1.0, 0.0, 1.0)
    assert plain.post_sampling_hooks == []


def test_every_numeric_setting_of_the_engine_is_set_or_off_by_default() -> None:
    from exllamav2.generator import ExLlamaV2Sampler

    defaults, neutral = ExLlamaV2Sampler.Settings(), sampler_settings(engine_pb2.Sampling())
    off = {"token_repetition_range", "token_repetition_decay", "temp_exponent", "mirostat_tau", "mirostat_eta",
           "dry_allowed_length", "dry_base", "dry_range", "dry_max_ngram", "xtc_threshold", "ngram_index"}  # fmt: skip
    numbers = {name for name, value in vars(defaults).items() if isinstance(value, int | float)}
    assert numbers - off == set(neutral) - {"cfg_scale"}


@pytest.mark.parametrize("given", [{"temperature": 0.0}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}])
def test_the_likeliest_only(given: dict[str, Any]) -> None:
    logits = torch.zeros(WORDS)
    logits[7] = 0.01
    assert draws(given, logits, 50)[7] == 1.0


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"top_k": 3}, 3),
        ({"top_p": 0.8}, 3),
        ({"min_p": 0.3}, 2),
        ({"top_k": 2, "top_p": 0.99}, 2),
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.2}, 3),
        ({"top_p": 0.45}, 1),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_what_is_cut_off_does_not_depend_on_the_temperature(
    given: dict[str, Any], left: int, temperature: float
) -> None:
    logits = torch.full((WORDS,), -20.0)
    logits[:5] = torch.tensor([0.5, 0.25, 0.12, 0.08, 0.05]).log()
    got = draws({**given, "temperature": temperature}, logits)
    weights = logits[:left].softmax(0) ** (1 / temperature)
    assert (got > 0).sum() == left
    assert torch.allclose(got[:left], weights / weights.sum(), atol=2e-3)


def test_a_temperature_alone_flattens() -> None:
    logits = torch.randn(WORDS, generator=torch.Generator().manual_seed(1)) * 2
    assert torch.allclose(draws({"temperature": 2.0}, logits), (logits / 2).softmax(0), atol=2e-3)


@pytest.mark.parametrize("given", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.01}])
def test_the_lowest_temperatures_draw_the_likeliest_of_a_flat_choice(given: dict[str, Any]) -> None:
    logits = torch.zeros(WORDS)
    logits[7] = 0.5
    assert draws({"temperature": 0.02, **given}, logits, 50)[7] == 1.0


def test_only_a_temperature_of_zero_is_greedy() -> None:
    logits = torch.full((WORDS,), -20.0)
    logits[7], logits[8] = 0.001, 0.0
    assert draws({"temperature": 0.0}, logits, 50)[7] == 1.0
    for temperature in (1e-6, 0.01):
        assert 0.4 < draws({"temperature": temperature}, logits, 50)[8] < 0.5


def test_a_nucleus_wider_than_usual_is_found() -> None:
    logits = torch.randn(8192, generator=torch.Generator().manual_seed(0)) * 0.1
    order = logits.argsort(descending=True)
    needed = int((logits.softmax(0)[order].cumsum(0) < 0.9).sum()) + 1
    Cut(top_p=0.9).apply(logits)
    assert set(logits.isfinite().nonzero().flatten().tolist()) == set(order[:needed].tolist())
    assert needed > 2000


def test_what_a_grammar_forbids_is_not_among_the_likeliest() -> None:
    logits = torch.arange(WORDS, dtype=torch.float)
    logits[10:] = float("-inf")
    for cut, left in ((Cut(top_k=3), 3), (Cut(top_k=20), 10), (Cut(top_p=0.9), 3), (Cut(min_p=0.1), 3)):
        cutting = logits.clone()
        cut.apply(cutting)
        assert int(cutting.isfinite().sum()) == left
        assert int(cutting.argmax()) == 9


def test_logit_bias_is_added_to_the_tokens_it_names() -> None:
    logits = torch.zeros(WORDS)
    Adjustments.of(engine_pb2.Sampling(logit_bias={3: 2.0, 4: -100.0}), WORDS).apply(logits, torch.zeros(0).long())
    expected = torch.zeros(WORDS)
    expected[3], expected[4] = 2.0, -100.0
    assert torch.equal(logits, expected)
    with pytest.raises(Refused, match="100 tokens"):
        Adjustments.of(engine_pb2.Sampling(logit_bias={100: 1.0}), WORDS)


def test_penalties_are_those_of_openai() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, 0.5])
    before = logits.clone()
    Adjustments(repeat=2.0, presence=0.5, frequency=0.25).apply(logits, torch.tensor([0, 1, 1, 1, 0]))
    assert logits.tolist() == pytest.approx([1.0 / 2 - 0.5 - 0.5, -1.0 * 2 - 0.5 - 0.75, 2.0, 0.5])
    for penalties, generated in ((Adjustments(), [0]), (Adjustments(presence=1.0), [])):
        again = before.clone()
        penalties.apply(again, torch.tensor(generated, dtype=torch.long))
        assert torch.equal(again, before)


def test_penalties_come_from_the_request_and_never_reach_the_engine() -> None:
    sampling = engine_pb2.Sampling(repeat_penalty=1.3, presence_penalty=0.5, frequency_penalty=-0.5)
    got = Adjustments.of(sampling, WORDS)
    assert (got.repeat, got.presence, got.frequency) == (pytest.approx(1.3), 0.5, -0.5)
    assert Adjustments.of(engine_pb2.Sampling(), WORDS) == Adjustments()
    engine = sampler_settings(sampling)
    assert (engine["token_repetition_penalty"], engine["token_presence_penalty"]) == (1.0, 0.0)


def test_log_probabilities_are_of_the_whole_vocabulary() -> None:
    logits = torch.randn(WORDS)
    every, likeliest = log_probabilities(logits, 3)
    assert float(every.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert [token for token, _ in likeliest] == logits.topk(3).indices.tolist()
    assert log_probabilities(logits, 0)[1] == []
