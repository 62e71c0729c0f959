"""Logs, metrics and diagnostics as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import ParseDict

from llamastead.v1 import operations_pb2 as pb
from llamastead_server.domain.operations.diagnosis import Device, Finding, Report
from llamastead_server.domain.operations.log_book import LogEntry
from llamastead_server.domain.operations.meters import Measurements, ModelLoad, Resources
from llamastead_server.services.timestamps import rfc3339


def log_json(entry: LogEntry) -> dict[str, Any]:
    """A log entry as JSON data."""
    shown: dict[str, Any] = {
        "timestamp": rfc3339(entry.time),
        "level": entry.level,
        "logger": entry.logger,
        "message": entry.message,
    }
    if entry.request_id:
        shown["request_id"] = entry.request_id
    return {**shown, "fields": dict(entry.fields)}


def log_entry(entry: LogEntry) -> pb.GetLogsResponse:
    """A log entry."""
    return ParseDict(log_json(entry), pb.GetLogsResponse())


def metrics(found: Measurements) -> pb.GetMetricsResponse:
    """All measurements."""
    return pb.GetMetricsResponse(
        timestamp=found.timestamp,
        resources=_resources(found.resources),
        request_count=found.request_count,
        error_count=found.error_count,
        average_response_time=found.average_response_time,
        inference_latency=found.inference_latency,
        token_throughput=found.token_throughput,
        batch_throughput=found.batch_throughput,
        cache_hit_rate=found.cache_hit_rate,
        active_requests=sum(load.active for load in found.models),
        queued_requests=sum(load.queued for load in found.models),
        uptime=found.uptime,
        models=[_model(load) for load in found.models],
    )


def check(name: str, finding: Finding) -> pb.DiagnosticCheck:
    """What one check found."""
    return pb.DiagnosticCheck(name=name, status=finding.status, detail=finding.detail)


def diagnostics(report: Report, versions: Mapping[str, str], devices: Sequence[Device]) -> pb.GetDiagnosticsResponse:
    """What all checks found, by their names."""
    failed = report.failed
    return pb.GetDiagnosticsResponse(
        status="error" if failed else "success",
        message=f"Failed: {', '.join(failed)}" if failed else "All checks passed",
        checks=[check(name, report.findings[name]) for name in sorted(report.findings)],
        versions=versions,
        devices=[_device(device) for device in devices],
    )


def _resources(found: Resources) -> pb.ResourceMetrics:
    return pb.ResourceMetrics(
        cpu_usage=found.cpu_usage,
        memory_usage=found.memory_usage,
        memory_bytes=found.memory_bytes,
        gpu_usage=found.gpu_usage,
        gpu_memory=found.gpu_memory,
        disk_usage=found.disk_usage,
        network_io=found.network_io,
    )


def _model(load: ModelLoad) -> pb.ModelMetrics:
    return pb.ModelMetrics(
        model=load.model,
        request_count=load.request_count,
        generated_tokens=load.generated_tokens,
        active_requests=load.active,
        queued_requests=load.queued,
        memory_bytes=load.memory_bytes,
    )


def _device(device: Device) -> pb.Device:
    return pb.Device(
        name=device.name,
        kind=device.kind,
        memory_total_bytes=device.memory_total_bytes,
        memory_free_bytes=device.memory_free_bytes,
    )
