from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from llamastead_server.workers.inference_queue import Floats, InferenceQueue, QueueFull


class Model:
    """Doubles numbers; waits at its gate before each batch and remembers the batches."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def infer(self, inputs: Sequence[int]) -> Floats:
        self.batches.append(list(inputs))
        self.entered.set()
        assert self.gate.wait(10)
        if 13 in inputs:
            raise ValueError("an unlucky number")
        return np.asarray([[2 * number] for number in inputs], dtype=np.float32)


async def run(queue: InferenceQueue, model: Model, inputs: Sequence[int], *, urgent: bool = False) -> list[int]:
    rows = await queue.run(model.infer, inputs, inputs, urgent=urgent)
    return [int(row[0]) for row in rows]


async def occupied(queue: InferenceQueue, model: Model) -> asyncio.Task[list[int]]:
    """Closes the gate with one request inside."""
    model.gate.clear()
    task = asyncio.create_task(run(queue, model, [0]))
    assert await asyncio.to_thread(model.entered.wait, 10)
    return task


async def test_rows_come_back_in_the_order_of_the_inputs() -> None:
    queue, model = InferenceQueue(batch=4), Model()
    numbers = [5, 1, 9, 3, 7, 2, 8, 4, 6, 0]
    assert await run(queue, model, numbers) == [2 * number for number in numbers]
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert queue.size == 0


async def test_concurrent_requests_share_batches() -> None:
    queue, model = InferenceQueue(batch=8), Model()
    first = await occupied(queue, model)
    others = [asyncio.create_task(run(queue, model, [number])) for number in range(1, 6)]
    await asyncio.sleep(0)
    model.gate.set()
    assert [await task for task in (first, *others)] == [[0], [2], [4], [6], [8], [10]]
    assert model.batches == [[0], [1, 2, 3, 4, 5]]


async def test_urgent_requests_overtake_the_rest_of_a_long_one() -> None:
    queue, model = InferenceQueue(batch=2), Model()
    first = await occupied(queue, model)
    long = asyncio.create_task(run(queue, model, [1, 2, 3, 4]))
    urgent = asyncio.create_task(run(queue, model, [50], urgent=True))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, long, urgent)
    assert model.batches == [[0], [50], [1, 2], [3, 4]]


async def test_requests_of_different_models_never_share_a_batch() -> None:
    queue, one, other = InferenceQueue(), Model(), Model()
    first = await occupied(queue, one)
    tasks = [asyncio.create_task(run(queue, model, [number])) for number, model in enumerate([one, other, one], 1)]
    await asyncio.sleep(0)
    one.gate.set()
    assert [await task for task in (first, *tasks)] == [[0], [2], [4], [6]]
    assert one.batches == [[0], [1], [3]]
    assert other.batches == [[2]]


async def test_a_full_queue_refuses_at_once_and_still_takes_urgent_requests() -> None:
    queue, model = InferenceQueue(limit=3, urgent_limit=1), Model()
    first = await occupied(queue, model)
    waiting = asyncio.create_task(run(queue, model, [1, 2, 3]))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await run(queue, model, [4])
    urgent = asyncio.create_task(run(queue, model, [5], urgent=True))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await run(queue, model, [6], urgent=True)
    assert queue.size == 5
    model.gate.set()
    assert [await first, await waiting, await urgent] == [[0], [2, 4, 6], [10]]


async def test_a_cancelled_request_is_dropped_and_frees_its_place() -> None:
    queue, model = InferenceQueue(limit=3), Model()
    first = await occupied(queue, model)
    cancelled = asyncio.create_task(run(queue, model, [1, 2, 3]))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    after = asyncio.create_task(run(queue, model, [4]))
    await asyncio.sleep(0)
    model.gate.set()
    assert [await first, await after] == [[0], [8]]
    assert model.batches == [[0], [4]]


async def test_a_failing_batch_fails_its_request_and_no_other() -> None:
    queue, model = InferenceQueue(batch=2), Model()
    with pytest.raises(ValueError, match="unlucky"):
        await run(queue, model, [12, 13, 14, 15])
    assert await run(queue, model, [1]) == [2]
