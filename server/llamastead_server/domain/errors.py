"""What can go wrong, in the domain's words.

Every expected failure is one of these classes. `services.errors` holds the one table that turns a
class into a gRPC code, an HTTP status and a body; nothing else in the server knows about statuses.
"""

from __future__ import annotations

from collections.abc import Mapping


class LlamasteadError(Exception):
    """An expected failure, with a message written for the person who made the request.

    Args:
        message: One sentence that says what is wrong and, where possible, what to do about it.
        details: Machine-readable facts behind the message, as strings.
        retry_after: Seconds after which the same request may succeed.
    """

    def __init__(
        self, message: str, *, details: Mapping[str, str] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.retry_after = retry_after


class InvalidRequest(LlamasteadError):
    """The request is malformed or asks for something impossible."""


class ValidationFailed(InvalidRequest):
    """A field's value breaks a rule; `details` maps field paths to reasons."""


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's context window."""

    def __init__(self, prompt_tokens: int, context_length: int, *, at_least: bool = False) -> None:
        size = f"at least {prompt_tokens}" if at_least else str(prompt_tokens)
        super().__init__(
            f"The prompt has {size} tokens, but this model's context window holds "
            f"{context_length} tokens, answer included. Shorten the messages.",
            details={"prompt_tokens": str(prompt_tokens), "context_length": str(context_length)},
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class Unauthenticated(LlamasteadError):
    """The credentials are missing or wrong."""


class PermissionDenied(LlamasteadError):
    """The credentials do not allow this."""


class NotFound(LlamasteadError):
    """The named thing does not exist."""


class ModelNotFound(NotFound):
    """The named model is not installed here."""


class AlreadyExists(LlamasteadError):
    """The name is taken."""


class Conflict(LlamasteadError):
    """The request contradicts the present state, for example an index of another embedding model."""


class PayloadTooLarge(LlamasteadError):
    """The body is larger than the server accepts."""


class UnsupportedMediaType(LlamasteadError):
    """The body's content type is not one this endpoint reads."""


class RequestTimeout(LlamasteadError):
    """The work did not end within the time the request allowed."""


class RateLimited(LlamasteadError):
    """The caller made too many requests."""


class Overloaded(LlamasteadError):
    """The queue is full; the request was refused before any work was done."""


class Unavailable(LlamasteadError):
    """A part the request needs is down or still starting."""


class EngineFailed(Unavailable):
    """The engine worker died or hung while it served the request."""


class ModelLoadFailed(LlamasteadError):
    """A model was asked to be loaded and can't be."""


class NotSupported(LlamasteadError):
    """The server does not implement this yet."""


class Internal(LlamasteadError):
    """A defect of the server."""
