from __future__ import annotations

import pytest

from llamastead_server.domain.errors import Unavailable
from llamastead_server.domain.operations.diagnosis import Check, Diagnosis, Finding, Report


async def no_devices() -> tuple[()]:
    return ()


async def test_each_check_is_answered_and_a_broken_one_breaks_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def sound() -> Finding:
        return Finding("ok", "Fine.")

    async def down() -> Finding:
        raise Unavailable("It is down.")

    async def defective() -> Finding:
        raise ZeroDivisionError("a secret")

    checks = [Check("sound", sound), Check("down", down), Check("defective", defective)]
    report = Report()
    async for check, finding in Diagnosis(checks, {}, no_devices).run():
        report.findings[check.name] = finding
    assert report.failed == ["defective", "down"]
    assert report.findings["sound"] == Finding("ok", "Fine.")
    assert report.findings["down"] == Finding("error", "It is down.")
    assert "secret" not in report.findings["defective"].detail
    assert any(record.exc_info for record in caplog.records)
