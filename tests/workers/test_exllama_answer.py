"""Answers from results as the generator gives them, held back ones among them."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import torch

from llamastead_server.workers.exllama_answer import Answer
from llamastead_server.workers.exllama_sampling import log_probabilities
from tests.workers import exllama_stub

exllama_stub.install()
END = 300


class Bytes:
    """Token ids are bytes; 300 is a control token."""

    def bytes_of(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def text_of(self, token: int) -> str:
        return "<end>" if token == END else self.bytes_of(token).decode(errors="replace")


def job(*chosen: Any) -> Any:
    return SimpleNamespace(chosen=deque(chosen), cached_pages=1, cached_tokens=3)


def ids(data: bytes | list[int]) -> torch.Tensor:
    return torch.tensor([list(data)], dtype=torch.long)


def streaming(the_job: Any, data: bytes | list[int] = b"", **rest: Any) -> dict[str, Any]:
    result: dict[str, Any] = {"job": the_job, "stage": "streaming", "eos": False, **rest}
    return result | ({"token_ids": ids(data)} if data else {})


def eos(the_job: Any, reason: str, **rest: Any) -> dict[str, Any]:
    return streaming(the_job, eos=True, eos_reason=reason, new_tokens=9, **rest)


def test_stages_before_the_text() -> None:
    answer = Answer(Bytes(), 400, [])
    assert answer.take({"job": job(), "stage": "started", "eos": False}) == [{"prompt_progress": {}}]
    assert answer.take({"job": job(), "stage": "prefill", "eos": False, "curr_progress": 1, "max_progress": 2}) == []
    assert answer.take(streaming(job())) == []


def test_text_held_back_by_the_generator_is_flushed_at_the_end() -> None:
    answer, the_job = Answer(Bytes(), 400, []), job()
    assert answer.take(streaming(the_job, b"ab"))[0]["content"] == "ab"
    held = {"token_ids": ids([*"é".encode(), *b" stop", END]), "text": "é stop"}
    events = answer.take(eos(the_job, "stop_token", eos_triggering_token_id=END, held=held))
    assert events[0]["content"] == "é stop"
    assert events[1]["stop_type"] == "eos"
    assert events[1]["tokens_predicted"] == 9
    assert answer.finished


def test_the_end_token_is_no_text_even_if_it_is_written_as_some() -> None:
    answer, the_job = Answer(Bytes(), 400, []), job()
    held = {"token_ids": ids(b"xy")}
    events = answer.take(eos(the_job, "stop_token", eos_triggering_token_id=ord("y"), held=held))
    assert events[0]["content"] == "x"


def test_characters_split_over_results_come_whole() -> None:
    answer, the_job = Answer(Bytes(), 400, []), job()
    parts = "👩日".encode()
    texts = [event["content"] for byte in parts for event in answer.take(streaming(the_job, [byte]))]
    assert [text for text in texts if text] == ["👩", "日"]


def test_the_limit_drops_half_a_character() -> None:
    answer, the_job = Answer(Bytes(), 400, []), job()
    answer.take(streaming(the_job, b"a"))
    events = answer.take(eos(the_job, "max_new_tokens", token_ids=ids("é".encode()[:1])))
    assert "".join(event["content"] for event in events) == ""
    assert events[-1]["stop_type"] == "limit"


def test_a_stop_string_ends_it_before_the_generator_knows() -> None:
    answer, the_job = Answer(Bytes(), 300, ["STOP"]), job()
    assert answer.take(streaming(the_job, b"go ST"))[0]["content"] == "go "
    events = answer.take(streaming(the_job, b"OP more"))
    assert answer.finished
    assert events[-1] == {
        "content": "", "stop": True, "stop_type": "word", "tokens_evaluated": 300, "tokens_predicted": 7,
        "timings": {"cache_n": 259},
    }  # fmt: skip
    assert answer.take(streaming(the_job, b"late")) == []


def test_log_probabilities_belong_to_their_tokens() -> None:
    from llamastead_server.workers.exllama_job import Chosen

    _, likeliest = log_probabilities(torch.arange(301.0), 2)
    chosen = [Chosen(token, -0.5, likeliest) for token in b"ab"]
    answer, the_job = Answer(Bytes(), 400, []), job(*chosen)
    (event,) = answer.take(streaming(the_job, b"ab"))
    first, second = event["completion_probabilities"]
    assert (first["token"], second["token"], first["bytes"]) == ("a", "b", [97])
    assert [other["token"] for other in first["top_logprobs"]] == ["<end>", ""]
    assert event["count"] == 2
