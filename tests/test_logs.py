from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from llamastead_server import logs
from llamastead_server.domain.operations.log_book import LogBook, LogQuery
from llamastead_server.domain.request_id import REQUEST_ID, adopt


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("llamastead", "llamastead_server")}
    token = REQUEST_ID.set("")
    yield
    REQUEST_ID.reset(token)
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


def test_text_lines_carry_level_logger_and_request_id() -> None:
    stream = io.StringIO()
    logs.configure("INFO", "text", stream)
    REQUEST_ID.set("abc")
    logging.getLogger("llamastead.access").info("done %d", 1)
    assert stream.getvalue().endswith(" INFO    llamastead.access [abc] done 1\n")


def test_a_line_break_in_a_message_forges_no_line() -> None:
    stream = io.StringIO()
    logs.configure("INFO", "text", stream)
    logging.getLogger("llamastead").warning("a\nERROR forged \x1b[2J")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_json_lines_carry_fields_and_tracebacks() -> None:
    stream = io.StringIO()
    logs.configure("INFO", "json", stream)
    REQUEST_ID.set("abc")
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("llamastead").exception("failed", extra={"fields": {"status": "OK", "level": "no"}})
    entry = json.loads(stream.getvalue())
    assert (entry["request_id"], entry["status"], entry["level"], entry["message"]) == ("abc", "OK", "ERROR", "failed")
    assert "ValueError: x" in entry["exception"]


def test_libraries_are_heard_from_warning_up_and_warnings_with_them() -> None:
    stream = io.StringIO()
    logs.configure("INFO", "text", stream)
    logging.getLogger("some.library").info("chatter")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("look", stacklevel=1)
    assert "chatter" not in stream.getvalue()
    assert "look" in stream.getvalue()


@pytest.mark.parametrize("offered", ["a", "A-1.b_c:d", "x" * 128])
def test_a_sane_request_id_is_adopted(offered: str) -> None:
    assert adopt(offered) == offered


@pytest.mark.parametrize("offered", [None, "", " ", "a b", "-a", "x" * 129, "a\n", "é"])
def test_another_is_replaced(offered: str | None) -> None:
    assert adopt(offered) != offered
    assert adopt(offered) != adopt(offered)


def test_the_book_keeps_records_with_their_request_and_without_secrets() -> None:
    book = LogBook()
    logs.configure("INFO", "text", io.StringIO(), book=book, secrets=["hush-hush"])
    REQUEST_ID.set("abc")
    log = logging.getLogger("llamastead.test")
    log.info("token %s", "hush-hush", extra={"fields": {"path": "/x?key=hush-hush", "count": 1}})
    log.info("sent Authorization: Bearer xyz.123")
    log.info("postgresql://user:password@host/db")
    try:
        raise ValueError("hush-hush")
    except ValueError:
        log.exception("failed")
    entries = book.read(LogQuery())
    assert {entry.request_id for entry in entries} == {"abc"}
    assert entries[0].fields == {"path": "/x?key=***", "count": 1}
    shown = str(entries)
    for secret in ("hush-hush", "xyz.123", "password"):
        assert secret not in shown
    assert "ValueError" in entries[-1].fields["exception"]


def test_the_level_can_be_changed_while_running() -> None:
    book = LogBook()
    logs.configure("INFO", "text", io.StringIO(), book=book)
    log = logging.getLogger("llamastead.test")
    for level, heard in (("ERROR", False), ("DEBUG", True), ("CRITICAL", False)):
        logs.set_level(level)
        log.debug("at %s", level)
        assert any(entry.message == f"at {level}" for entry in book.read(LogQuery())) is heard
