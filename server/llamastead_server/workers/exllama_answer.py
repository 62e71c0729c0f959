"""One answer of ExLlamaV2's generator, from its results to the events that the engine worker serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from llamastead_server.workers.model import Event
from llamastead_server.workers.text_stream import TextStream

_PAGE = 256


class TokenTexts(Protocol):
    """What tokens look like as text; `hf_tokenizer.HfTokenizer` is one."""

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text; nothing for control tokens."""

    def text_of(self, token: int) -> str:
        """How a token is written, control tokens included."""


class Answer:
    """Takes the results of one job in order.

    The engine's own text is not used: it shows half characters at the end, and looks for stop strings in a way
    that misses some. Its token ids are.

    Args:
        texts: What tokens look like.
        prompt_tokens: Tokens of the prompt.
        stops: Strings that end the answer.
    """

    def __init__(self, texts: TokenTexts, prompt_tokens: int, stops: Sequence[str]) -> None:
        self._texts = texts
        self._prompt_tokens = prompt_tokens
        self._stream = TextStream(stops)
        self._generated = 0
        self.finished = False

    def take(self, result: Mapping[str, Any]) -> list[Event]:
        """Returns the events that a result means; after it, `finished` tells whether the answer is complete."""
        if self.finished:
            return []
        if result["stage"] == "started":
            return [{"prompt_progress": {}}]
        if result["stage"] != "streaming":
            return []
        job = result["job"]
        text: list[str] = []
        entries: list[Any] = []
        count = 0
        for token in self._tokens(result):
            chosen = job.chosen.popleft() if job.chosen else None
            shown, told = self._stream.push(self._texts.bytes_of(token), chosen)
            text.append(shown)
            entries.extend(told)
            count += 1
            if self._stream.stopped:
                break
        self._generated += count
        ended = result["eos"] or self._stream.stopped
        if ended:
            shown, told = self._stream.finish()
            text.append(shown)
            entries.extend(told)
        events = [self._event("".join(text), entries, count)] if count or any(text) else []
        if ended:
            self.finished = True
            events.append(self._last(result))
        return events

    def _tokens(self, result: Mapping[str, Any]) -> list[int]:
        """The result's tokens, at the end also those that were held back, without the one that ended the answer."""
        tokens = _ids(result.get("token_ids"))
        if result["eos"]:
            tokens += _ids(result.get("held", {}).get("token_ids"))
            if result["eos_reason"] == "stop_token" and tokens and tokens[-1] == result["eos_triggering_token_id"]:
                tokens.pop()
        return tokens

    def _event(self, text: str, entries: Sequence[Any], count: int) -> Event:
        event: Event = {"content": text, "stop": False, "count": count}
        if entries:
            event["completion_probabilities"] = [
                self._entry(chosen.token, chosen.logprob)
                | {"top_logprobs": [self._entry(token, logprob) for token, logprob in chosen.likeliest]}
                for chosen in entries
            ]
        return event

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._texts.bytes_of(token)
        return {"token": self._texts.text_of(token), "logprob": logprob, "bytes": list(data)}

    def _last(self, result: Mapping[str, Any]) -> Event:
        job = result["job"]
        kind = "word" if self._stream.stopped else "limit" if result["eos_reason"] == "max_new_tokens" else "eos"
        return {
            "content": "",
            "stop": True,
            "stop_type": kind,
            "tokens_evaluated": self._prompt_tokens,
            "tokens_predicted": self._generated if self._stream.stopped else result["new_tokens"],
            "timings": {"cache_n": min(self._prompt_tokens, job.cached_pages * _PAGE + job.cached_tokens)},
        }


def _ids(tensor: Any) -> list[int]:
    return [] if tensor is None else [int(token) for token in tensor.flatten().tolist()]


BuildJob = Callable[[object], Any]
"""Makes the engine's job, given what identifies it in results."""
