from __future__ import annotations

from prometheus_client.exposition import generate_latest

from llamastead_server.adapters.prometheus_meters import LastMinute, PrometheusMeters
from llamastead_server.domain.models.generation import Usage
from tests.fake_clock import FakeClock

METHOD = "/llamastead.v1.PromptService/ProcessPrompt"


def test_the_last_minute_forgets_what_is_older() -> None:
    clock = FakeClock(1000.0)
    minute = LastMinute(clock)
    assert (minute.mean, minute.rate) == (0, 0)
    minute.add(10)
    clock.now += 30
    minute.add(20)
    assert (minute.mean, minute.rate) == (15, 1)
    clock.now += 30
    assert (minute.mean, minute.rate) == (20, 20 / 60)
    clock.now += 31
    assert (minute.mean, minute.rate) == (0, 0)


def test_the_last_minute_holds_no_more_than_a_minute() -> None:
    clock = FakeClock()
    minute = LastMinute(clock)
    for _ in range(10_000):
        clock.now += 0.5
        minute.add(1)
    assert len(minute._seconds) <= 61
    assert minute.mean == 1


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = PrometheusMeters(), PrometheusMeters()
    first.call_began(METHOD)
    first.call_ended(METHOD, "OK", 0.1)
    assert b'code="OK"' in generate_latest(first.registry)
    assert b'code="OK"' not in generate_latest(second.registry)


def test_calls_and_generations_are_counted_by_how_they_ended() -> None:
    meters = PrometheusMeters()
    for code in ("OK", "INVALID_ARGUMENT", "INTERNAL", "UNAVAILABLE"):
        meters.call_began(METHOD)
        meters.call_ended(METHOD, code, 0.2)
    meters.first_token("m", 0.5)
    meters.more_tokens("m", 4, 0.4)
    meters.answered("m", "stop", Usage(10, 5, 6))
    meters.answered("m", "cancelled", None)
    meters.embedded(3)
    assert (meters.requests, meters.errors) == (4, 2)
    assert (meters.answers["m"], meters.tokens["m"]) == (2, 5)
    assert (meters.prompt_tokens, meters.cached_tokens) == (10, 6)
    value = meters.registry.get_sample_value
    assert value("llamastead_requests_total", {"method": METHOD, "code": "INTERNAL"}) == 1
    assert value("llamastead_requests_in_progress", {"method": METHOD}) == 0
    assert value("llamastead_generations_total", {"model": "m", "reason": "cancelled"}) == 1
    assert value("llamastead_inter_token_latency_seconds_sum", {"model": "m"}) == 0.1
    assert value("llamastead_prompt_tokens_cached_total", {"model": "m"}) == 6
    assert value("llamastead_embedded_texts_total") == 3
