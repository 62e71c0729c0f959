"""The WebSocket through the real gateway, with the real client library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llamastead_server.adapters.database import Database
from llamastead_server.adapters.rate_windows import MemoryWindows
from llamastead_server.adapters.task_store import SqlTaskStore
from llamastead_server.adapters.token_store import SqlTokenStore
from llamastead_server.domain.access.limits import LimitRules, Limits, OwnStreams
from llamastead_server.domain.access.rights import ProjectPattern, Scope
from llamastead_server.domain.access.tokens import Tokens
from llamastead_server.domain.errors import Unavailable
from llamastead_server.domain.names import ProjectRef
from llamastead_server.domain.ports import TaskProgress
from llamastead_server.domain.tasks.tasks import TaskRules, TaskRunner
from llamastead_server.services.auth import BearerAuth
from llamastead_server.services.websocket import SUBPROTOCOL, WebSocketBounds, WebSocketServer
from llamastead_server.services.websocket_work import WebSocketWork
from tests.chat_stack import REF, ChatStack, passage
from tests.gateway import Running, running

ASK = {"messages": [{"role": "user", "content": "Hi"}]}
BOUNDS = WebSocketBounds(message_bytes=100_000, connections=8, requests=4, slow_reader=0.5)


class Served:
    """The gateway with a WebSocket server behind it, and everything that answers there."""

    def __init__(self, stack: ChatStack, tasks: TaskRunner, tokens: Tokens, limits: Limits) -> None:
        self.stack = stack
        self.tasks = tasks
        self.tokens = tokens
        self.limits = limits
        auth = BearerAuth(tokens)
        work = WebSocketWork(stack.turns, tasks, stack.models, lambda: {"uptime": 1.5, "active_requests": 0})
        self.websocket = WebSocketServer(work, auth, limits, BOUNDS)
        self.step = asyncio.Event()
        self.running: Running

    def connect(self, secret: str | None = None, *, query: str = "", **options: Any) -> connect:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        headers |= options.pop("headers", {})
        url = f"ws://127.0.0.1:{self.running.port}/v1/ws{query}"
        return connect(url, additional_headers=headers, proxy=None, **options)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Database.in_folder(tmp_path / "data") as database:
        stack = ChatStack(tmp_path, database)
        await stack.project()

        async def stepwise(_: ProjectRef, arguments: Mapping[str, Any], progress: TaskProgress) -> Mapping[str, Any]:
            await progress.report(1, 2, "half")
            await one.step.wait()
            await progress.report(2, 2, "all")
            return {"done": True}

        clock = time.time
        tasks = TaskRunner(
            SqlTaskStore(database), {"stepwise": stepwise}, clock, alone=True, rules=TaskRules(poll=0.05)
        )
        tokens = Tokens(SqlTokenStore(database), clock)
        one = Served(stack, tasks, tokens, Limits(MemoryWindows(clock), clock))
        await tasks.start()
        socket = tmp_path / "w.sock"
        await one.websocket.start(socket)
        async with running([], websocket_socket=socket) as one.running:
            yield one
            await one.websocket.stop(0)
        await tasks.stop()


def chat(frame_id: str = "1", /, **fields: Any) -> dict[str, Any]:
    body = {"type": "chat", "id": frame_id, "namespace": REF.namespace, "project": REF.name, "request": ASK}
    return body | fields


async def send(connection: ClientConnection, frame: Mapping[str, Any]) -> None:
    await connection.send(json.dumps(frame))


async def receive(connection: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        frame: dict[str, Any] = json.loads(await connection.recv())
        return frame


async def until(connection: ClientConnection, *ends: str) -> list[dict[str, Any]]:
    """The frames up to one of a type."""
    found = [await receive(connection)]
    while found[-1]["type"] not in ends:
        found.append(await receive(connection))
    return found


async def answers(connection: ClientConnection, frame: Mapping[str, Any]) -> list[dict[str, Any]]:
    await send(connection, frame)
    return await until(connection, "done", "error", "cancelled")


async def closed(connection: ClientConnection) -> int | None:
    """The code the server closes with; frames before that are passed over."""
    async with asyncio.timeout(20):
        try:
            while True:
                await connection.recv()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd is not None else None


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_chat_streams_and_is_kept(served: Served) -> None:
    async with served.connect() as connection:
        frames = await answers(connection, chat(session_id="s"))
    assert [frame["type"] for frame in frames] == ["started", *["delta"] * 4, "done"]
    assert {frame["id"] for frame in frames} == {"1"}
    assert (frames[0]["session_id"], frames[0]["model"]) == ("s", "fake")
    assert "".join(frame["text"] for frame in frames[1:-1]) == "Hello, world."
    assert frames[-1]["finish_reason"] == "stop"
    assert frames[-1]["usage"]["completion_tokens"] == 4
    assert await served.stack.history() == [("user", "Hi"), ("assistant", "Hello, world.")]


async def test_sources_come_before_the_text_when_they_are_asked_for(served: Served) -> None:
    raw = {"rag": {"databases": [{"name": "main", "type": "MilvusStore"}], "default_database": "main"}}
    await served.stack.projects.delete(REF)
    await served.stack.project(**raw)
    served.stack.shelf.sources = [passage()]
    async with served.connect() as connection:
        frames = await answers(connection, chat(request=ASK | {"include_sources": True}))
    assert [frame["type"] for frame in frames[:3]] == ["started", "sources", "delta"]
    assert frames[1]["sources"][0]["source"] == "handbook.pdf"


async def test_a_function_call_is_a_frame_of_its_own(served: Served) -> None:
    served.stack.engine.pieces = list('{"name": "weather", "parameters": {"city": "Oslo"}}')
    tool = {"type": "function", "function": {"name": "weather"}}
    async with served.connect() as connection:
        frames = await answers(connection, chat(request=ASK | {"tools": [tool]}))
    assert [frame["type"] for frame in frames] == ["started", "tool_call", "done"]
    assert (frames[1]["index"], frames[1]["tool_call"]["function"]["name"]) == (0, "weather")
    assert frames[2]["finish_reason"] == "tool_calls"


async def test_logprobs_come_with_the_text(served: Served) -> None:
    async with served.connect() as connection:
        frames = await answers(connection, chat(request=ASK | {"logprobs": True, "top_logprobs": 1}))
    assert frames[1]["logprobs"]["content"][0]["token"] == "Hello"


async def test_requests_on_one_connection_are_answered_side_by_side(served: Served) -> None:
    served.stack.engine.gate = asyncio.Event()
    async with served.connect() as connection:
        for name in ("a", "b"):
            await send(connection, chat(name, no_session=True))
        await eventually(lambda: served.stack.engine.active == 2)
        assert served.websocket.active == 2
        served.stack.engine.gate.set()
        ended = [(await until(connection, "done"))[-1]["id"] for _ in range(2)]
    assert sorted(ended) == ["a", "b"]


async def test_cancelling_frees_the_engine_and_keeps_nothing(served: Served) -> None:
    served.stack.engine.pieces, served.stack.engine.delay = ["word "] * 1000, 0.01
    async with served.connect() as connection:
        await send(connection, chat(session_id="s"))
        await until(connection, "delta")
        await send(connection, {"type": "cancel", "id": "1"})
        assert (await until(connection, "cancelled"))[-1] == {"type": "cancelled", "id": "1"}
        assert (served.stack.engine.active, served.stack.models.leases) == (0, 0)
        assert await served.stack.history() == []
        # The connection and the id are free for the next request.
        served.stack.engine.pieces = ["ok"]
        assert (await answers(connection, chat()))[-1]["type"] == "done"


async def test_a_disconnect_in_the_midst_frees_the_engine_and_keeps_nothing(served: Served) -> None:
    served.stack.engine.pieces, served.stack.engine.delay = ["word "] * 1000, 0.01
    async with served.connect() as connection:
        await send(connection, chat(session_id="s"))
        await until(connection, "delta")
    await eventually(lambda: served.stack.engine.active == 0)
    await eventually(lambda: served.websocket.active == 0)
    assert served.stack.engine.closed == 1
    assert await served.stack.history() == []


async def test_a_failure_is_an_error_frame_and_the_connection_lives_on(served: Served) -> None:
    served.stack.engine.fail_at = 2
    async with served.connect() as connection:
        frames = await answers(connection, chat(session_id="s"))
        assert [frame["type"] for frame in frames] == ["started", "delta", "delta", "error"]
        assert frames[-1]["error"]["code"] == "engine_failed"
        served.stack.engine.fail_at = None
        assert (await answers(connection, chat()))[-1]["type"] == "done"
    assert await served.stack.history() == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"project": "absent"}, "not_found"),
        ({"project": "../x"}, "invalid_request"),
        ({"session_id": "a b"}, "invalid_request"),
        ({"request": {"messages": []}}, "validation_failed"),
        ({"request": ASK | {"temperature": 9}}, "validation_failed"),
        ({"request": ASK | {"stream": False}}, "invalid_request"),
        ({"request": ASK | {"n": 2}}, "invalid_request"),
        ({"request": ASK | {"namespace": "other"}}, "invalid_request"),
        ({"request": ASK | {"project": "other"}}, "invalid_request"),
        ({"request": ASK | {"session_id": "other"}, "session_id": "mine"}, "invalid_request"),
        ({"request": ASK | {"model": "absent"}}, "model_not_found"),
    ],
)
async def test_a_chat_that_cannot_be_is_refused_with_its_id(served: Served, fields: dict[str, Any], code: str) -> None:
    async with served.connect() as connection:
        (frame,) = await answers(connection, chat(**fields))
    assert (frame["type"], frame["id"], frame["error"]["code"]) == ("error", "1", code)


@pytest.mark.parametrize(
    ("text", "frame_id", "code"),
    [
        ("", None, "invalid_request"),
        ("nonsense", None, "invalid_request"),
        ("[]", None, "validation_failed"),
        ("{}", None, "invalid_request"),
        ('{"type": "unknown", "id": "7"}', "7", "invalid_request"),
        ('{"type": "chat", "id": "7"}', "7", "validation_failed"),
        ('{"type": "chat", "id": 7}', None, "validation_failed"),
        ('{"type": "ping", "id": "7", "extra": 1}', "7", "validation_failed"),
        ('{"type": "cancel", "id": "7"}', "7", "not_found"),
        ("[" * 50_000, None, "invalid_request"),
        ('{"type": "cancel", "id": "\\ud800"}', None, "invalid_request"),
    ],
)
async def test_a_frame_that_is_none_is_an_error_frame(
    served: Served, text: str, frame_id: str | None, code: str
) -> None:
    async with served.connect() as connection:
        await connection.send(text)
        frame = await receive(connection)
        assert (frame["type"], frame["id"], frame["error"]["code"]) == ("error", frame_id, code)
        await send(connection, {"type": "ping", "id": "p"})
        assert await receive(connection) == {"type": "pong", "id": "p"}


async def test_ping_needs_no_id(served: Served) -> None:
    async with served.connect() as connection:
        await send(connection, {"type": "ping"})
        assert await receive(connection) == {"type": "pong"}


async def test_a_task_is_followed_to_its_end(served: Served) -> None:
    task = await served.tasks.submit(REF, "stepwise", {})
    watch = {"type": "task.watch", "id": "t", "namespace": REF.namespace, "project": REF.name, "task_id": task.id}
    async with served.connect() as connection:
        await send(connection, watch)
        while (frame := await receive(connection))["task"]["meta"]["message"] != "half":
            assert frame["type"] == "task"
        assert (frame["task"]["state"], frame["task"]["meta"]["progress"], frame["task"]["result"]) == (
            "STARTED",
            50,
            None,
        )
        served.step.set()
        *_, last, done = await until(connection, "done")
        assert (last["task"]["state"], last["task"]["result"]) == ("SUCCESS", {"done": True})
        assert done == {"type": "done", "id": "t"}
        (absent,) = await answers(connection, watch | {"task_id": "absent"})
        assert absent["error"]["code"] == "not_found"


async def test_loading_a_model_shows_its_states(served: Served) -> None:
    async with served.connect() as connection:
        frames = await answers(connection, {"type": "model.load", "id": "m", "model": "llama3.2:3b"})
        assert frames == [
            {"type": "model", "id": "m", "model": "fake", "state": "ready"},
            {"type": "done", "id": "m"},
        ]
        (absent,) = await answers(connection, {"type": "model.load", "id": "m", "model": "absent"})
        assert absent["error"]["code"] == "model_not_found"


async def test_a_model_that_takes_its_time_or_fails_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    models, go = served.stack.models, asyncio.Event()

    async def load(name: str) -> Any:
        models.engine.card = replace(models.engine.card, state="loading")
        await go.wait()
        models.engine.card = replace(models.engine.card, state="failed")
        raise Unavailable("It does not fit.")

    monkeypatch.setattr(models, "load", load)
    async with served.connect() as connection:
        await send(connection, {"type": "model.load", "id": "m", "model": "fake"})
        while (await receive(connection))["state"] != "loading":
            pass
        go.set()
        *_, state, error = await until(connection, "error")
    assert state["state"] == "failed"
    assert (error["error"]["code"], error["error"]["message"]) == ("unavailable", "It does not fit.")


async def test_metrics_tick_until_they_are_cancelled(served: Served) -> None:
    async with served.connect() as connection:
        await send(connection, {"type": "metrics.subscribe", "id": "x", "interval_seconds": 0.5})
        for _ in range(2):
            tick = await receive(connection)
            assert (tick["type"], tick["id"]) == ("metrics", "x")
            assert tick["metrics"] == {"uptime": 1.5, "active_requests": 0}
            assert abs(tick["timestamp"] - time.time()) < 60
        await send(connection, {"type": "cancel", "id": "x"})
        await until(connection, "cancelled")
        (refused,) = await answers(connection, {"type": "metrics.subscribe", "id": "y", "interval_seconds": 0})
        assert "interval_seconds" in refused["error"]["details"]


async def test_an_id_in_use_and_a_request_too_many_are_refused(served: Served) -> None:
    served.stack.engine.gate = asyncio.Event()
    async with served.connect() as connection:
        for number in range(BOUNDS.requests):
            await send(connection, chat(str(number), no_session=True))
        await until(connection, "started")
        await send(connection, chat("0"))
        assert (await until(connection, "error"))[-1]["error"]["code"] == "conflict"
        await send(connection, chat("more"))
        refused = (await until(connection, "error"))[-1]
        assert (refused["id"], refused["error"]["code"], refused["retry_after"]) == ("more", "rate_limited", 1.0)


async def test_a_message_too_large_a_binary_one_and_one_too_many_connections_are_closed(served: Served) -> None:
    async with served.connect() as connection:
        await connection.send("x" * 100_001)
        assert await closed(connection) == 1009
    async with served.connect() as connection:
        await connection.send(b"\x00")
        assert await closed(connection) == 1003
    connections = [await served.connect() for _ in range(BOUNDS.connections)]
    async with served.connect() as one_more:
        assert await closed(one_more) == 1013
    await asyncio.gather(*(connection.close() for connection in connections))


async def test_a_connection_may_carry_more_than_one_body_may_hold(served: Served) -> None:
    async with served.connect() as connection:
        for _ in range(60):
            await connection.send(json.dumps({"type": "ping", "id": "p"}) + " " * 99_000)
            await receive(connection)


async def test_a_client_that_does_not_read_is_cut_off_and_frees_the_engine(served: Served) -> None:
    served.stack.engine.pieces = ["x" * 100_000] * 1000
    connection = await served.connect(max_queue=1)
    connection.transport.pause_reading()
    await send(connection, chat(session_id="s"))
    await eventually(lambda: served.stack.engine.active == 1)
    await eventually(lambda: served.stack.engine.active == 0)
    assert await served.stack.history() == []
    connection.transport.resume_reading()
    # Without a word, if it still does not read when the connection's end can wait no longer.
    assert await closed(connection) in (1008, None)
    await eventually(lambda: served.websocket.active == 0)


async def test_stopping_lets_answers_end_and_closes_with_1001(served: Served) -> None:
    served.stack.engine.gate = asyncio.Event()
    async with served.connect() as connection, served.connect() as idle:
        await send(connection, chat(session_id="s"))
        await until(connection, "started")
        await send(idle, {"type": "metrics.subscribe", "id": "x"})
        await receive(idle)
        stopping = asyncio.create_task(served.websocket.stop(20))
        await eventually(lambda: served.websocket.active == 1)
        await send(connection, chat("late"))
        refused = (await until(connection, "error"))[-1]
        assert (refused["id"], refused["error"]["code"]) == ("late", "unavailable")
        served.stack.engine.gate.set()
        assert (await until(connection, "done"))[-1]["id"] == "1"
        assert await closed(connection) == await closed(idle) == 1001
        await stopping
    assert len(await served.stack.history()) == 2


async def test_stopping_ends_what_does_not_end_in_time(served: Served) -> None:
    served.stack.engine.gate = asyncio.Event()
    async with served.connect() as connection:
        await send(connection, chat(session_id="s"))
        await until(connection, "started")
        await served.websocket.stop(0.1)
        assert await closed(connection) == 1001
    assert (served.stack.engine.active, await served.stack.history()) == (0, [])


@pytest.mark.parametrize("way", ["header", "query", "subprotocol", "both protocols"])
async def test_a_token_opens_the_connection_in_each_way(served: Served, way: str) -> None:
    _, secret = await served.tokens.create("ci", Scope.READ)
    offered = {"subprotocol": [f"bearer.{secret}"], "both protocols": [f"bearer.{secret}", SUBPROTOCOL]}.get(way)
    async with served.connect(
        secret if way == "header" else None,
        query=f"?token={secret}" if way == "query" else "",
        subprotocols=offered,
    ) as connection:
        await send(connection, {"type": "ping"})
        assert (await receive(connection))["type"] == "pong"
        assert connection.subprotocol == (None if offered is None else offered[-1])


@pytest.mark.parametrize("query", ["", "?token=wrong", "?token=a&token=b", "?token="])
async def test_without_a_right_token_the_connection_is_closed_with_4401(served: Served, query: str) -> None:
    await served.tokens.create("ci", Scope.READ)
    for secret in (None, "wrong"):
        async with served.connect(secret, query=query) as connection:
            with contextlib.suppress(ConnectionClosed):
                await send(connection, chat())
            assert await closed(connection) == 4401
    assert served.stack.engine.requests == []


async def test_a_token_revoked_or_a_server_closed_ends_open_connections(served: Served) -> None:
    async with served.connect() as anonymous:
        _, secret = await served.tokens.create("ci", Scope.READ)
        async with served.connect(secret) as connection:
            await send(connection, {"type": "ping"})
            await receive(connection)
            await served.tokens.revoke("ci")
            assert await closed(connection) == 4401
        assert await closed(anonymous) == 4401


async def test_frames_need_the_scopes_of_the_calls_that_do_the_same(served: Served) -> None:
    load = {"type": "model.load", "id": "m", "model": "fake"}
    for scope, ends in ((Scope.READ, "error"), (Scope.WRITE, "error"), (Scope.ADMIN, "done")):
        _, secret = await served.tokens.create(str(scope), scope)
        async with served.connect(secret) as connection:
            assert (await answers(connection, chat()))[-1]["type"] == "done"
            last = (await answers(connection, load))[-1]
            assert last["type"] == ends
            if ends == "error":
                assert last["error"]["code"] == "permission_denied"


async def test_a_restricted_token_reaches_its_project_alone(served: Served) -> None:
    for name, project in (("own", REF.name), ("all", None)):
        _, secret = await served.tokens.create(name, Scope.READ, ProjectPattern(REF.namespace, project))
        async with served.connect(secret) as connection:
            assert (await answers(connection, chat()))[-1]["type"] == "done"
            (metrics,) = await answers(connection, {"type": "metrics.subscribe", "id": "x"})
            assert metrics["error"]["code"] == "permission_denied"
    _, secret = await served.tokens.create("other", Scope.READ, ProjectPattern("elsewhere"))
    async with served.connect(secret) as connection:
        (refused,) = await answers(connection, chat())
        assert refused["error"]["code"] == "permission_denied"
        watch = {"type": "task.watch", "id": "t", "namespace": REF.namespace, "project": REF.name, "task_id": "x"}
        (refused,) = await answers(connection, watch)
        assert refused["error"]["code"] == "permission_denied"


async def test_requests_and_streams_count_as_everywhere(served: Served) -> None:
    served.limits.rules = LimitRules(requests=4, streams=1)
    _, secret = await served.tokens.create("ci", Scope.READ)
    served.stack.engine.gate = asyncio.Event()
    async with served.connect(secret) as connection:
        await send(connection, chat("a", no_session=True))
        await until(connection, "started")
        (second,) = await answers(connection, chat("b"))
        assert (second["error"]["code"], second["retry_after"]) == ("rate_limited", 1.0)
        served.stack.engine.gate.set()
        await until(connection, "done")
        assert (await answers(connection, chat("c", no_session=True)))[-1]["type"] == "done"
        (fifth,) = await answers(connection, chat("d"))
        assert fifth["error"]["code"] == "rate_limited"
        assert fifth["retry_after"] > 1
        async with served.connect(secret) as another:
            assert await closed(another) == 4429


async def test_who_has_read_an_end_may_use_the_id_and_the_stream_again_at_once(served: Served) -> None:
    class Slow(OwnStreams):
        @contextlib.asynccontextmanager
        async def hold(self, caller: str, limit: int) -> AsyncIterator[bool]:
            async with super().hold(caller, limit) as held:
                yield held
                await asyncio.sleep(0.1)

    served.limits.rules = LimitRules(streams=1)
    served.limits._streams = Slow()
    async with served.connect() as connection:
        for _ in range(3):
            assert (await answers(connection, chat("1", no_session=True)))[-1]["type"] == "done"


@pytest.mark.parametrize(
    ("origin", "welcome"), [("http://localhost:5173", True), ("https://evil.example", False), ("null", False)]
)
async def test_only_pages_that_may_call_may_connect(served: Served, origin: str, welcome: bool) -> None:
    if welcome:
        async with served.connect(origin=origin) as connection:
            await send(connection, {"type": "ping"})
            await receive(connection)
        return
    with pytest.raises(InvalidStatus) as refused:
        await served.connect(origin=origin)
    assert refused.value.response.status_code == 403
    assert "web origin" in json.loads(refused.value.response.body or b"")["detail"]


@pytest.mark.parametrize(
    "path", ["/v1/ws/x", "/", "/v1/projects/a", "/api/v1/ws", "/api/x", "/api/models", "/v1/api/x"]
)
async def test_other_paths_are_no_websockets_and_say_where_it_is(served: Served, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{served.running.port}{path}", proxy=None)
    answer = refused.value.response
    assert answer.status_code == 404
    assert answer.headers["x-request-id"]
    assert "x-refused-upgrade" not in answer.headers
    body = json.loads(answer.body or b"")
    assert body["error"]["code"] == "not_found"
    assert "/v1/ws" in body["error"]["message"]
    assert ("detail" in body) == (path not in ("/api/x", "/api/models", "/v1/api/x"))


@pytest.mark.parametrize(
    ("path", "upgrade", "status"),
    [("/v1/ws", "other", 404), ("/v1/ws", None, 404), ("/health", "other", 404), ("/health", "h2c", 501)],
)
async def test_an_upgrade_to_something_else_is_404(served: Served, path: str, upgrade: str | None, status: int) -> None:
    headers = {} if upgrade is None else {"connection": "upgrade", "upgrade": upgrade}
    answer = await served.running.http.get(path, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == ("not_found" if status == 404 else "not_supported")


async def test_the_log_tells_requests_and_no_tokens(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    _, secret = await served.tokens.create("ci", Scope.READ)
    with caplog.at_level(logging.DEBUG, "llamastead"):
        async with served.connect(query=f"?token={secret}") as connection:
            await answers(connection, chat(request=ASK | {"user": "u-1"}))
        await eventually(lambda: "is closed" in caplog.text)
    lines = [record for record in caplog.records if record.name == "llamastead.access"]
    assert [line.__dict__["fields"]["caller"] for line in lines] == ["token:ci"]
    assert [line.__dict__["fields"]["user"] for line in lines] == ["u-1"]
    assert lines[0].getMessage().startswith("WebSocket chat OK ")
    assert secret not in caplog.text
