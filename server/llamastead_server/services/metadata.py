"""What a call's metadata says."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

from llamastead_server.domain import request_id

CLIENT_ADDRESS = "x-client-address"
"""The header in which the gateway tells the client's address."""

MetadataPairs = Iterable[tuple[str, str | bytes]]


class CallMetadata:
    """The metadata a call came with, which for REST requests are the HTTP headers.

    Args:
        pairs: Names, in lower case, and values.
    """

    def __init__(self, pairs: MetadataPairs | None) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs or ():
            if isinstance(value, str):
                self._values.setdefault(name, []).append(value)

    def get(self, name: str) -> str | None:
        """The value of `name`; None if it is absent, the first if it was sent more than once."""
        values = self._values.get(name)
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        """Every value of `name`."""
        return list(self._values.get(name, ()))

    @property
    def rest_path(self) -> str | None:
        """Path and query of the REST request that the gateway translated; None for native gRPC callers.

        A client of the bare gRPC port can send this header itself. It then gets its own errors in REST's shape;
        nothing else rests on it.
        """
        return self.get("x-envoy-original-path")

    @property
    def rest_method(self) -> str | None:
        """HTTP method of the REST request; None for native gRPC callers."""
        return self.get("x-envoy-original-method") if self.rest_path is not None else None

    def client_address(self, peer: str) -> str:
        """Address of the client.

        Args:
            peer: The other end of the connection, as gRPC names it. Over the unix socket that is the gateway, which
                puts the client's address into a header in place of any that the client sent.
        """
        if peer.startswith("unix:"):
            return self.get(CLIENT_ADDRESS) or "unknown"
        return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]") or "unknown"

    @property
    def request_id(self) -> str:
        """The caller's `X-Request-ID` if it is sane, else a new id at each reading."""
        return request_id.adopt(self.get("x-request-id"))
