"""The answers that tell of a failure: those of one call, from its comment, and those any call may get."""

from __future__ import annotations

from typing import Any

from openapi_comment import Json

REQUEST_ID: Json = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
RETRY_AFTER: Json = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
CHALLENGE: Json = {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}}
RATE_LIMIT: Json = {
    name: {"$ref": f"#/components/headers/{name}"}
    for name in ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
}
HEADERS = {"401": CHALLENGE, "429": RETRY_AFTER | RATE_LIMIT, "503": RETRY_AFTER}

# Shared by calls whose comment says nothing else about the status: its name among the components, and what it means.
ALWAYS = {
    "401": ("Unauthenticated", "The token is missing, wrong, revoked or expired."),
    "403": (
        "Forbidden",
        "The token's scope or project does not allow this, or the request comes from a web origin, or for a host name, "
        "that this server does not serve.",
    ),
    "429": ("TooManyRequests", "Too many requests; `Retry-After` says when to try again."),
    "500": ("Internal", "A defect of the server."),
    "503": ("Unavailable", "The server is starting, stopping or overloaded; `Retry-After` says when to try again."),
}
WITH_INPUT = {"400": ("Unreadable", "The request cannot be read: it is malformed or a value has the wrong type.")}
WITH_BODY = {
    "413": ("TooLarge", "The body is larger than this server takes."),
    "415": ("WrongType", "The body is not what its call takes: JSON, or a form where one is documented."),
}


class Failures:
    """Describes failures in the body of each path family; the shared ones become components."""

    def __init__(self) -> None:
        self.components: Json = {}

    def of(
        self, path: str, own: dict[str, str], *, has_input: bool, has_body: bool, is_open: bool, is_limited: bool
    ) -> Json:
        """Describes how a call may fail, by status.

        Args:
            path: The call's path, which decides the body.
            own: What the call's comment says of statuses.
            has_input: Whether the call takes anything that can be malformed.
            has_body: Whether the call takes a body.
            is_open: Whether the call needs no token.
            is_limited: Whether the call counts against the caller's limits.
        """
        family = "ApiError" if path.startswith("/api/") else "Error"
        shared = ALWAYS | (WITH_INPUT if has_input else {}) | (WITH_BODY if has_body else {})
        if is_open:
            del shared["401"]
        if not is_limited:
            del shared["429"]
        described: Json = {}
        for status in sorted(shared.keys() | own.keys()):
            if status in own:
                described[status] = failure(status, own[status], family)
                continue
            word, text = shared[status]
            name = word if family == "Error" else f"Api{word}"
            self.components[name] = failure(status, text, family)
            described[status] = {"$ref": f"#/components/responses/{name}"}
        return described


def failure(status: str, text: str, family: str) -> dict[str, Any]:
    """Describes one failure."""
    schema = {"schema": {"$ref": f"#/components/schemas/{family}"}}
    headers = REQUEST_ID | HEADERS.get(status, {})
    return {"description": text, "headers": headers, "content": {"application/json": schema}}
