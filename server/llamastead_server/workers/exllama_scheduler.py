"""ExLlamaV2's dynamic generator in a thread of its own: requests go in, events come out.

The generator batches by itself, chunks prompts and reuses their pages; it must be called by one thread. Its own
asyncio wrapper would run every decoding step on the event loop, and hangs readers of cancelled jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from collections.abc import AsyncGenerator, Callable
from typing import Any

from llamastead_server.workers.exllama_answer import Answer, BuildJob
from llamastead_server.workers.model import Busy, EngineError, Event, Refused

_log = logging.getLogger(__name__)
_MOST_FAILURES = 3
"""Failures in a row after which a new generator is not tried any more."""
_MESSAGE_SECONDS = 0.001
"""Seconds that a stream waits with its next text for each stream there is: at most a thousand messages a second.

What a message costs in this process is taken from the generator, which shares its interpreter, and a GPU gives many
streams more tokens than one server process can pass on one by one.
"""


class Request:
    """One completion on its way through the scheduler; made by `Scheduler.generate`."""

    def __init__(self, build: BuildJob, answer: Answer) -> None:
        self.build = build
        self.answer = answer
        self.job: Any = None
        # The reader's side, on the event loop.
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.done = False
        self.due = 0.0
        self.arrived = asyncio.Event()


class Scheduler:
    """Runs a generator.

    Args:
        make_generator: Makes the generator, and again when it failed; called in the scheduler's thread.
        loop: The event loop of the readers.
        limit: Requests it holds at once; one more is `Busy`.
    """

    def __init__(self, make_generator: Callable[[], Any], loop: asyncio.AbstractEventLoop, *, limit: int) -> None:
        self._make_generator = make_generator
        self._loop = loop
        self._limit = limit
        self._held = 0
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: dict[int, Request] = {}
        self._generator: Any = None
        self._failures = 0
        self._stopping = False
        self.broken = ""

    @property
    def active_requests(self) -> int:
        """Requests it holds."""
        return self._held

    async def generate(self, build: BuildJob, answer: Answer) -> AsyncGenerator[list[Event], None]:
        """Runs one request; yields events, all that are ready at a time. Closing the iterator cancels it.

        The first come at once, those between at intervals that grow with the number of streams.

        Raises:
            Busy: It holds as many as it takes.
            Refused: The job cannot be made.
            EngineError: The generator failed while it ran.
        """
        if self._held >= self._limit:
            raise Busy(f"The engine already holds {self._held} requests.")
        request = Request(build, answer)
        self._held += 1
        self._commands.put(lambda: self._start(request))
        try:
            while True:
                await request.arrived.wait()
                request.arrived.clear()
                # More may come, and the end too, while the reader is busy with these.
                while request.events:
                    events, request.events = request.events, []
                    yield events
                if request.error is not None:
                    raise request.error
                if request.done:
                    return
        finally:
            self._held -= 1
            if not request.done:
                self._commands.put(lambda: self._cancel(request))

    async def ping(self) -> None:
        """Returns once the thread has come between two steps."""
        answered = asyncio.Event()
        self._commands.put(lambda: self._call(answered.set))
        await answered.wait()

    def stop(self) -> None:
        """Ends the thread at the next step; the process is about to end."""
        self._stopping = True
        self._commands.put(None)

    def run(self) -> None:
        """Runs until `stop`; the thread's function."""
        try:
            self._generator = self._make_generator()
            while not self._stopping:
                self._obey(wait=not self._running)
                if self._running and not self._stopping:
                    self._step()
        except BaseException as error:
            _log.exception("the engine's thread ended")
            self.broken = self.broken or str(error) or type(error).__name__
            self._fail(list(self._running.values()), EngineError(self.broken))
            self._refuse_what_comes()

    def _refuse_what_comes(self) -> None:
        """Answers commands with the failure, until the supervision ends this process."""
        while not self._stopping:
            command = self._commands.get()
            if command is not None:
                with contextlib.suppress(Exception):
                    command()
                self._fail(list(self._running.values()), EngineError(self.broken))

    def _obey(self, *, wait: bool) -> None:
        with contextlib.suppress(queue.Empty):
            while not self._stopping:
                command = self._commands.get(block=wait)
                wait = False
                if command is not None:
                    command()

    def _start(self, request: Request) -> None:
        if self.broken:
            self._fail([request], EngineError(self.broken))
            return
        try:
            request.job = request.build(request)
            self._generator.enqueue(request.job)
        except Refused as refusal:
            self._fail([request], refusal)
        except AssertionError as error:
            # How the generator says that a job can never fit.
            self._fail([request], Refused(str(error) or "The request does not fit the engine's cache."))
        except Exception as error:
            _log.exception("a job could not be made")
            self._fail([request], EngineError(f"{type(error).__name__}: {error}"))
        else:
            self._running[id(request)] = request

    def _cancel(self, request: Request) -> None:
        if self._running.pop(id(request), None) is not None:
            self._generator.cancel(request.job)

    def _step(self) -> None:
        try:
            results = self._generator.iterate()
        except Exception as error:
            self._recover(error)
            return
        self._failures = 0
        told: list[tuple[Request, list[Event], Exception | None]] = []
        for result in results:
            request = result.get("identifier")
            if not isinstance(request, Request) or id(request) not in self._running:
                continue
            events = request.answer.take(result)
            if request.answer.finished:
                del self._running[id(request)]
                if not result["eos"]:
                    self._generator.cancel(request.job)
                told.append((request, events, _stuck(request)))
            elif events:
                told.append((request, events, None))
        if told:
            finished = [request.answer.finished for request, _, _ in told]
            self._call(lambda: self._tell(told, finished))

    def _recover(self, error: Exception) -> None:
        """Fails what ran and gives what waited to a new generator; an error of the GPU itself ends the engine."""
        self._failures += 1
        reason = f"{type(error).__name__}: {error}"
        _log.error("a step of the generator failed: %s", reason, exc_info=error)
        broken = self._generator
        waiting = {id(job) for job in broken.pending_jobs}
        ran = [request for request in self._running.values() if id(request.job) not in waiting]
        final = _is_final(error) or self._failures >= _MOST_FAILURES
        if final:
            self.broken = reason
        self._fail(ran, EngineError(reason))
        if final:
            raise error
        order = [job.identifier for job in broken.pending_jobs]
        _shut_down(broken)
        # Its tensors must be free before the next one takes its own.
        self._generator = broken = None
        self._generator = self._make_generator()
        for request in order:
            if isinstance(request, Request) and id(request) in self._running:
                del self._running[id(request)]
                self._start(request)

    def _fail(self, requests: list[Request], error: Exception) -> None:
        for request in requests:
            self._running.pop(id(request), None)
        if requests:
            self._call(lambda: self._tell([(request, [], error) for request in requests], [True] * len(requests)))

    def _tell(self, told: list[tuple[Request, list[Event], Exception | None]], finished: list[bool]) -> None:
        now = self._loop.time()
        for (request, events, error), done in zip(told, finished, strict=True):
            request.events.extend(events)
            request.error = request.error or error
            request.done = request.done or done or error is not None
            # What is not due goes with what the next step brings.
            if request.done or now >= request.due:
                request.due = now + len(told) * _MESSAGE_SECONDS
                request.arrived.set()

    def _call(self, function: Callable[[], None]) -> None:
        # The loop is closed only when the process ends.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)


def _stuck(request: Request) -> Exception | None:
    if any(getattr(each, "stuck", False) for each in request.job.filters):
        return EngineError("The model cannot write an answer that satisfies the JSON schema.")
    return None


def _is_final(error: Exception) -> bool:
    """Whether the GPU is lost to this process: after such an error every further call fails."""
    text = str(error)
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in text or "device-side assert" in text


def _shut_down(generator: Any) -> None:
    for name in ("sampling_pool", "filter_pool"):
        pool = getattr(generator, name, None)
        if pool is not None:
            pool.shutdown(wait=False)
