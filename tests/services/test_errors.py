from __future__ import annotations

import errno
import json

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from llamastead_server.domain import errors as domain
from llamastead_server.services import errors

FARM, HOME = "/v1/projects/a/b", "/api/models"
# What Envoy would answer by itself for a gRPC code; the others need `x-http-status`.
CLASSES = [
    value for value in vars(domain).values() if isinstance(value, type) and issubclass(value, domain.LlamasteadError)
]


def made(kind: type[domain.LlamasteadError]) -> domain.LlamasteadError:
    return kind(10, 5) if kind is domain.ContextLengthExceeded else kind("It is so.")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_row_of_its_own(kind: type[domain.LlamasteadError]) -> None:
    reasons = [errors.rendering(made(each)).reason for each in CLASSES if each is not domain.LlamasteadError]
    assert len(set(reasons)) == len(reasons)
    assert errors.rendering(made(kind)).code is not grpc.StatusCode.OK
    assert errors.rendering(made(kind)).http >= 400


@pytest.mark.parametrize(
    ("kind", "http"),
    [
        (domain.ValidationFailed, 422),
        (domain.ContextLengthExceeded, 400),
        (domain.Unauthenticated, 401),
        (domain.PayloadTooLarge, 413),
        (domain.UnsupportedMediaType, 415),
        (domain.RequestTimeout, 408),
        (domain.RateLimited, 429),
        (domain.Overloaded, 503),
        (domain.NotSupported, 501),
        (domain.ModelNotFound, 404),
        (domain.Conflict, 409),
    ],
)
def test_an_error_has_the_http_status_its_class_names(kind: type[domain.LlamasteadError], http: int) -> None:
    metadata = dict(errors.trailing_metadata(made(kind), FARM))
    assert metadata["x-http-status"] == str(http)


def test_a_subclass_unknown_to_the_table_looks_like_its_parent() -> None:
    class Strange(domain.NotFound):
        pass

    assert errors.rendering(Strange("x")).reason == "NOT_FOUND"


def test_farm_bodies_have_detail_and_an_openai_error() -> None:
    body = json.loads(errors.json_body(domain.ContextLengthExceeded(10, 5), FARM))
    assert body["detail"] == body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"] == "context_length_exceeded"


def test_home_bodies_have_code_message_and_details() -> None:
    body = json.loads(errors.json_body(domain.ValidationFailed("Wrong.", details={"top_p": "is 2"}), HOME))
    assert body == {"error": {"code": "validation_failed", "message": "Wrong.", "details": {"top_p": "is 2"}}}


@pytest.mark.parametrize(
    ("path", "home"),
    [
        ("/api/models", True),
        ("/v1/api/models?x=/v1/", True),
        ("/api/v1/projects/a", False),
        ("/v1/projects/a", False),
        ("/", False),
        ("/api/v1x", True),
    ],
)
def test_the_path_family_is_told_by_its_prefix(path: str, home: bool) -> None:
    assert errors.is_home_path(path) is home


def test_native_callers_get_reason_fields_at_fault_and_time_to_wait() -> None:
    error = domain.ValidationFailed("Wrong.", details={"top_p": "is 2"}, retry_after=1.5)
    metadata = dict(errors.trailing_metadata(error, None))
    assert not {"x-http-status", "x-http-body"} & metadata.keys()
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info, fields, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("VALIDATION_FAILED", "llamastead")
    assert status.details[1].Unpack(fields)
    assert [(each.field, each.description) for each in fields.field_violations] == [("top_p", "is 2")]
    assert status.details[2].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_other_details_are_the_reasons_metadata() -> None:
    metadata = dict(errors.trailing_metadata(domain.ContextLengthExceeded(10, 5), None))
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(metadata["grpc-status-details-bin"]).details[0].Unpack(info)
    assert dict(info.metadata) == {"prompt_tokens": "10", "context_length": "5"}


def test_a_time_to_wait_is_whole_seconds_rounded_up() -> None:
    assert dict(errors.trailing_metadata(domain.Overloaded("x", retry_after=0.2), FARM))["retry-after"] == "1"
    assert dict(errors.trailing_metadata(domain.RateLimited("x", retry_after=2.1), FARM))["retry-after"] == "3"


def test_missing_credentials_say_which_kind_is_wanted() -> None:
    assert dict(errors.trailing_metadata(domain.Unauthenticated("x"), FARM))["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("character", ["x", "é", "漢", "\U0001f600", '"', "\\", "\ud800"])
def test_a_message_of_any_length_fits_into_metadata(character: str) -> None:
    details = {character * 100 + str(number): character * 300 for number in range(50)}
    error = domain.ValidationFailed(character * 100_000, details=details)
    native = dict(errors.trailing_metadata(error, None))["grpc-status-details-bin"]
    # Percent-encoded message and base64 details.
    assert 3 * len(errors.status_message(error).encode()) + len(native) * 4 // 3 < 8192
    assert len(dict(errors.trailing_metadata(error, FARM))["x-http-body"]) < 32_768
    assert errors.json_body(error, HOME).isascii()


def test_a_full_disk_is_said_to_be_full() -> None:
    found = errors.expected(OSError(errno.ENOSPC, "No space left on device", "/data/secret.txt"))
    assert isinstance(found, domain.Unavailable)
    assert "No space left" in found.message
    assert "secret" not in found.message


def test_an_unexpected_exception_is_logged_and_leaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    error = errors.expected(ZeroDivisionError("secret"))
    assert errors.rendering(error).http == 500
    assert "secret" not in error.message
    assert "request id" in error.message
    assert caplog.records[0].exc_info is not None
