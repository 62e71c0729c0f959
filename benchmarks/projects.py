"""Requests per second of GET project, beside the cheapest call there is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import grpc

from benchmarks.http_client import HttpConnection
from benchmarks.measure import Result, Table, interleaved, ratios, spread, together
from benchmarks.processes import cpu_seconds
from benchmarks.stack import NAMESPACE, Stack, running_stack
from llamastead.v1 import project_pb2, system_pb2

_PROJECT = "projects"
_CLIENTS = (1, 16)
_METHODS = {
    "GetLiveness": ("/llamastead.v1.SystemService/GetLiveness", system_pb2.GetLivenessRequest()),
    "GetProject": (
        "/llamastead.v1.ProjectService/GetProject",
        project_pb2.GetProjectRequest(namespace=NAMESPACE, project=_PROJECT),
    ),
}
_PATHS = {"GetLiveness": "/health/liveness", "GetProject": f"/v1/projects/{NAMESPACE}/{_PROJECT}"}


def run(quick: bool) -> Result:
    """Measures 1 and 16 clients, on connections that stay open."""
    rounds, seconds = (3, 0.3) if quick else (15, 1.0)
    rows: list[list[str]] = []
    samples: dict[str, dict[str, list[float]]] = {}
    with running_stack() as stack:
        stack.make_project(_PROJECT)
        for clients in _CLIENTS:
            with contextlib.ExitStack() as exits:
                paths = {
                    f"{way}, {method}": _sampler(stack, make(exits, stack, method, clients), clients, seconds)
                    for way, make in (("gRPC", _typed), ("REST", _rest))
                    for method in _METHODS
                }
                taken = interleaved(paths, rounds)
            rates = {name: [rate for rate, _, _ in values] for name, values in taken.items()}
            samples[str(clients)] = rates
            for name, values in taken.items():
                way, method = name.split(", ")
                floor = ratios(rates[name], rates[f"{way}, GetLiveness"])
                rows.append([
                    str(clients), way, method, f"{spread(rates[name]).median:.0f}",
                    "1" if method == "GetLiveness" else floor.text(),
                    f"{spread([server for _, server, _ in values]).median * 1e6:.0f}",
                    f"{spread([envoy for _, _, envoy in values]).median * 1e6:.0f}",
                ])  # fmt: skip
    columns = ["clients", "path", "call", "requests/s", "ratio to GetLiveness", "server, µs", "Envoy, µs"]
    return Result("projects", [Table("Requests and the processor time of each", columns, rows)], samples=samples)


def _typed(
    exits: contextlib.ExitStack, stack: Stack, method: str, clients: int
) -> Callable[[int], Callable[[], object]]:
    name, message = _METHODS[method]
    request = message.SerializeToString()
    # A channel each: one shared by all would make the client the bottleneck.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [exits.enter_context(grpc.insecure_channel(stack.bare_grpc, options=options)) for _ in range(clients)]

    def client(index: int) -> Callable[[], object]:
        call = channels[index].unary_unary(name, request_serializer=None, response_deserializer=None)
        return lambda: call(request, timeout=60)

    return client


def _rest(
    exits: contextlib.ExitStack, stack: Stack, method: str, clients: int
) -> Callable[[int], Callable[[], object]]:
    connections = [exits.enter_context(HttpConnection(stack.port)) for _ in range(clients)]

    def client(index: int) -> Callable[[], object]:
        request = connections[index].request_bytes("GET", _PATHS[method])
        return lambda: connections[index].send(request)

    return client


def _sampler(
    stack: Stack, client: Callable[[int], Callable[[], object]], clients: int, seconds: float
) -> Callable[[int], tuple[float, float, float]]:
    """Samples requests per second, and the processor seconds per request of the server and of Envoy."""
    processes = stack.processes()
    pids = processes["server"].pid, processes["Envoy"].pid

    def loop(index: int) -> int:
        call = client(index)
        deadline = time.perf_counter() + seconds
        count = 0
        while time.perf_counter() < deadline:
            call()
            count += 1
        return count

    def sample(_: int) -> tuple[float, float, float]:
        before = [cpu_seconds(pid) for pid in pids]
        started = time.perf_counter()
        count = sum(together(clients, loop))
        elapsed = time.perf_counter() - started
        server, envoy = ((cpu_seconds(pid) - cpu) / count for pid, cpu in zip(pids, before, strict=True))
        return count / elapsed, server, envoy

    return sample
