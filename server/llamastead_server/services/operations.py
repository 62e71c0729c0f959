"""OperationsService: watching and operating the running server."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from google.api import httpbody_pb2

from llamastead.v1 import operations_pb2 as pb
from llamastead.v1 import operations_pb2_grpc as pb_grpc
from llamastead_server.domain.errors import Internal, InvalidRequest
from llamastead_server.domain.operations.caches import Caches
from llamastead_server.domain.operations.diagnosis import Diagnosis, Report
from llamastead_server.domain.operations.health import HealthCheck, ask
from llamastead_server.domain.operations.log_book import LogBook, LogEntry, LogQuery
from llamastead_server.domain.operations.meters import MeterReader
from llamastead_server.domain.operations.shutdown import Shutdown
from llamastead_server.domain.ports import ModelRegistry
from llamastead_server.services import operations_messages as messages
from llamastead_server.services import plain
from llamastead_server.services.http_body import EVENTS, LINES, STREAM_HEADERS, StreamForm, json_body, late_errors
from llamastead_server.services.interceptors import recheck

_Context = grpc.aio.ServicerContext[Any, Any]
_LONGEST_GRACE = 3600.0


@dataclass(frozen=True, slots=True)
class Operations:
    """What the service works with."""

    models: ModelRegistry
    checks: Sequence[HealthCheck]
    log: LogBook
    meters: MeterReader
    caches: Caches
    diagnosis: Diagnosis
    shutdown: Shutdown


class OperationsServicer(pb_grpc.OperationsServiceServicer):
    """Operations over gRPC and, through the gateway, REST."""

    def __init__(self, operations: Operations) -> None:
        self._parts = operations
        self._began = time.monotonic()

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: _Context) -> pb.HealthCheckResponse:
        """Asks all parts at once; one that does not work is an error."""
        checks = self._parts.checks
        found = await asyncio.gather(*(ask(check) for check in checks))
        broken = [
            f"{check.name}: {health.message}"
            for check, health in zip(checks, found, strict=True)
            if health.status == "unhealthy"
        ]
        if broken:
            raise Internal(f"The server is not healthy. {' '.join(broken)}")
        return pb.HealthCheckResponse(
            status="success",
            message="API is healthy",
            model_loaded=self._parts.models.active_model is not None,
            uptime=int(time.monotonic() - self._began),
        )

    async def GetLogs(self, request: pb.GetLogsRequest, context: _Context) -> AsyncIterator[pb.GetLogsResponse]:
        """Streams log entries."""
        async with aclosing(self._entries(request, context)) as entries:
            async for entry in entries:
                yield messages.log_entry(entry)

    async def GetLogsHttp(self, request: pb.GetLogsRequest, context: _Context) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Streams log entries as lines of JSON."""

        async def lines() -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
            async with aclosing(self._entries(request, context)) as entries:
                async for entry in entries:
                    yield LINES.event(messages.log_json(entry))

        _log_query(request)
        await context.send_initial_metadata(STREAM_HEADERS)
        empty = True
        if request.follow:
            # Headers leave with the first byte, and the first entry may be hours away; JSON may begin with a space.
            yield LINES.body(b" ")
        async with aclosing(_stream(lines(), LINES)) as bodies:
            async for body in bodies:
                empty = False
                yield body
        if empty:
            # An answer without a body would lack its content type.
            yield LINES.body(b"")

    async def ClearCache(self, request: pb.ClearCacheRequest, context: _Context) -> pb.ClearCacheResponse:
        """Deletes temporary data."""
        cleared = await self._parts.caches.clear(request.cache_type or None)
        return pb.ClearCacheResponse(
            status="success",
            message=f"Cleared {', '.join(cleared.caches)}: {cleared.freed_bytes} bytes freed",
            freed_bytes=cleared.freed_bytes,
            cleared=cleared.caches,
        )

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: _Context) -> pb.GetMetricsResponse:
        """Gives the present metrics."""
        return messages.metrics(await self._parts.meters.measurements())

    async def WatchMetrics(
        self, request: pb.GetMetricsRequest, context: _Context
    ) -> AsyncIterator[pb.GetMetricsResponse]:
        """Streams the metrics at an interval."""
        async with aclosing(self._measured(_interval(request), context)) as measured:
            async for each in measured:
                yield each

    async def GetMetricsHttp(
        self, request: pb.GetMetricsRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Gives the present metrics as JSON, or streams them."""
        interval = _interval(request)

        async def events() -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
            async with aclosing(self._measured(interval, context)) as measured:
                async for each in measured:
                    yield EVENTS.event(plain.to_json(each))

        if not request.stream:
            yield json_body(plain.to_json(messages.metrics(await self._parts.meters.measurements())))
            return
        await context.send_initial_metadata(STREAM_HEADERS)
        async with aclosing(_stream(events(), EVENTS)) as bodies:
            async for body in bodies:
                yield body

    async def GetPrometheusMetrics(
        self, request: pb.GetPrometheusMetricsRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Gives the metrics in Prometheus' text format."""
        content_type, text = await self._parts.meters.exposition()
        return httpbody_pb2.HttpBody(content_type=content_type, data=text)

    async def GetDiagnostics(self, request: pb.GetDiagnosticsRequest, context: _Context) -> pb.GetDiagnosticsResponse:
        """Runs the checks and gives what they found."""
        report = Report()
        async for check, finding in self._parts.diagnosis.run():
            report.findings[check.name] = finding
        return await self._diagnostics(report)

    async def GetDiagnosticsHttp(
        self, request: pb.GetDiagnosticsRequest, context: _Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Gives the same as JSON, or streams each check as it ends."""

        async def events() -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
            report = Report()
            async for check, finding in self._parts.diagnosis.run():
                report.findings[check.name] = finding
                yield EVENTS.event(plain.to_json(messages.check(check.name, finding)))
            yield EVENTS.event(plain.to_json(await self._diagnostics(report)))
            yield EVENTS.body(EVENTS.end)

        if not request.stream:
            yield json_body(plain.to_json(await self.GetDiagnostics(request, context)))
            return
        await context.send_initial_metadata(STREAM_HEADERS)
        async with aclosing(_stream(events(), EVENTS)) as bodies:
            async for body in bodies:
                yield body

    async def Shutdown(self, request: pb.ShutdownRequest, context: _Context) -> pb.ShutdownResponse:
        """Asks the server to stop; this answer is among those that the grace is for."""
        grace = request.grace_seconds if request.HasField("grace_seconds") else None
        if grace is not None and not 0 <= grace <= _LONGEST_GRACE:
            raise InvalidRequest(
                f"grace_seconds must be between 0 and {_LONGEST_GRACE:g}.", details={"field": "grace_seconds"}
            )
        # After this answer is on its way.
        asyncio.get_running_loop().call_later(0.1, self._parts.shutdown.ask, grace)
        return pb.ShutdownResponse(status="success", message="The server is shutting down")

    async def _diagnostics(self, report: Report) -> pb.GetDiagnosticsResponse:
        diagnosis = self._parts.diagnosis
        return messages.diagnostics(report, diagnosis.versions, await diagnosis.devices())

    async def _measured(self, interval: float, context: _Context) -> AsyncGenerator[pb.GetMetricsResponse, None]:
        """The metrics at an interval, until the server is to stop."""
        ended = False
        while not ended:
            yield messages.metrics(await self._parts.meters.measurements())
            ended = await self._parts.shutdown.within(interval)
            recheck(context)

    async def _entries(self, request: pb.GetLogsRequest, context: _Context) -> AsyncGenerator[LogEntry, None]:
        query = _log_query(request)
        if not request.follow:
            for entry in self._parts.log.read(query):
                yield entry
            return
        async with aclosing(self._parts.log.follow(query)) as entries:
            async for entry in entries:
                recheck(context)
                yield entry


def _stream(
    events: AsyncGenerator[httpbody_pb2.HttpBody, None], form: StreamForm
) -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
    return late_errors(events, "/api/", form=form)


def _log_query(request: pb.GetLogsRequest) -> LogQuery:
    limit = request.limit if request.HasField("limit") else None
    return LogQuery.parse(request.level or None, limit, request.start_time or None, request.end_time or None)


def _interval(request: pb.GetMetricsRequest) -> float:
    interval = request.interval_seconds if request.HasField("interval_seconds") else 5.0
    if not math.isfinite(interval) or not 0.5 <= interval <= 3600:
        raise InvalidRequest("interval_seconds must be between 0.5 and 3600.", details={"field": "interval_seconds"})
    return interval
