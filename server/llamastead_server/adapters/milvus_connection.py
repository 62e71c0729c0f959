"""The connection to Milvus: its client's threads, and the embedded server's second life when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import grpc

from llamastead_server.adapters.milvus_lite import MilvusLite
from llamastead_server.domain.errors import LlamasteadError, Unavailable

T = TypeVar("T")
CALL_SECONDS = 30.0
"""Longest time of a call."""

_THREADS = 8
_NO_COLLECTION = 100
_CONNECTION_FAILED = 2
_DYING_SECONDS = 0.5
_PROBE_SECONDS = 5.0
_log = logging.getLogger(__name__)


class MilvusConnection:
    """Runs functions over pymilvus's client.

    pymilvus blocks, so they run in a small pool of threads.

    Attributes:
        loaded: Names of the collections that were loaded since the client was opened.

    Args:
        lite: The embedded server to start, or `None` for a cluster.
        uri: Address of the cluster when there is no embedded server.
        token: Token of the cluster.
    """

    def __init__(self, lite: MilvusLite | None, *, uri: str = "", token: str = "") -> None:
        _import_client()
        self._lite = lite
        self._uri = uri
        self._token = token
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="milvus")
        self._opening = threading.Lock()
        self._client: Any = None
        self.loaded: set[str] = set()

    async def open(self) -> None:
        """Connects, after the start of the embedded server; raises `Unavailable` and leaves nothing running."""
        try:
            await self._in_thread(self._open)
        except BaseException as error:
            await self.close()
            if self._lite is None and isinstance(error, Unavailable):
                reason = getattr(error.__cause__, "message", None) or error.__cause__
                raise Unavailable(f"The vector store of LLAMASTEAD_MILVUS_URI can't be used: {reason}") from error
            raise

    async def close(self) -> None:
        """Disconnects and ends the embedded server."""

        def close() -> None:
            with self._opening:
                self._release()
                if self._lite is not None:
                    self._lite.stop()

        await self._in_thread(close)
        self._pool.shutdown(wait=False)

    async def run(self, work: Callable[[Any], T], **missing: Any) -> T:
        """Runs `work` over the client; gives `missing` instead, if given, when there is no such collection.

        Raises:
            Unavailable: It failed, and once more if the embedded server had to be started again.
        """
        return await self._in_thread(lambda: self._attempt(work, missing))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _attempt(self, work: Callable[[Any], T], missing: Mapping[str, Any]) -> T:
        """Runs `work`, once more if the embedded server turns out to be dead, and words what goes wrong."""
        client = self._client
        for last in (False, True):
            try:
                client = client or self._open()
                return work(client)
            except Exception as error:
                if getattr(error, "code", None) == _NO_COLLECTION and "missing" in missing:
                    return cast(T, missing["missing"])
                if last or not self._was_lost(client, error):
                    raise self._worded(error) from error
            client = self._open(instead_of=client)
        raise AssertionError("the second attempt returns or raises")

    def _was_lost(self, client: Any, error: Exception) -> bool:
        """Whether the embedded server is dead, or was and has been started again by another thread."""
        if self._lite is None:
            return False
        killed = timed_out(error) and self._kill_if_hung(self._lite, client)
        if self._client is not client:
            return True
        broken = killed or getattr(error, "code", None) == _CONNECTION_FAILED or not self._lite.alive
        return broken and self._lite.ends_within(_DYING_SECONDS)

    def _kill_if_hung(self, lite: MilvusLite, client: Any) -> bool:
        """Kills the embedded server if it answers nothing at all; one that is only slow with a call lives on."""
        try:
            client.list_collections(timeout=_PROBE_SECONDS)
        except Exception as error:
            # Under the lock: another thread may just have put a new server in its place.
            with self._opening:
                if timed_out(error) and self._client is client:
                    _log.error("the embedded vector store hangs; killing it")
                    lite.kill()
                    return True
        return False

    def _open(self, instead_of: Any = None) -> Any:
        with self._opening:
            if self._client is not None and self._client is not instead_of:
                return self._client
            import pymilvus

            # It logs a page per expected error, such as a collection that is absent.
            logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
            if self._client is not None and self._lite is not None:
                _log.error("the embedded vector store died; starting it again")
            self._release()
            uri = self._lite.start() if self._lite is not None else self._uri
            try:
                self._client = pymilvus.MilvusClient(uri=uri, token=self._token, timeout=CALL_SECONDS)
            except Exception as error:
                raise self._worded(error) from error
            return self._client

    def _release(self) -> None:
        client, self._client = self._client, None
        self.loaded.clear()
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()

    def _worded(self, error: Exception) -> Exception:
        if isinstance(error, LlamasteadError):
            return error
        if getattr(error, "code", None) == _CONNECTION_FAILED or timed_out(error):
            return Unavailable("The vector store does not answer; try again shortly.", retry_after=2.0)
        if self._lite is not None and self._lite.is_short_of_space:
            return Unavailable("The vector store failed: its disk is full. Make room, then try again.")
        _log.error("the vector store failed: %s", error)
        return Unavailable("The vector store failed; the server's log tells why.", retry_after=2.0)


def _import_client() -> None:
    """Imports the client library and all that it would import at its first calls; not in threads, therefore.

    Forking, as the event loop does to start a child, takes the locks of logging and of imports, in this order. A
    thread that collects garbage while it imports takes them in the other one, and both wait for ever.
    """
    for name in ("pymilvus", "scipy.sparse", "grpc._channel", "grpc._interceptor"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def timed_out(error: Exception) -> bool:
    """Whether no answer came in time."""
    return isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
