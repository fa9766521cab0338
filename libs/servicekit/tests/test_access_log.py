"""The access log tells of failures, and of a flood of them by count."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from servicekit.errors import InvalidRequest
from servicekit.interceptors.access_log import AccessLogInterceptor
from servicekit.interceptors.call import Call
from servicekit.testing import FakeClock


def a_call(clock: FakeClock) -> Call:
    task: Any = asyncio.current_task()
    context: Any = SimpleNamespace(peer=lambda: "ipv4:10.0.0.7:1")
    return Call("/s/M", None, b"", context, {}, clock.monotonic(), task)


async def refuse(call: Call) -> None:
    call.code, call.reason = "INVALID_ARGUMENT", "INVALID_REQUEST"
    raise InvalidRequest("No.")


async def refusals(access_log: AccessLogInterceptor, clock: FakeClock, count: int) -> None:
    for _ in range(count):
        with pytest.raises(InvalidRequest):
            await access_log.intercept(a_call(clock), refuse)


async def test_a_flood_of_failures_is_counted_instead_of_told_one_by_one() -> None:
    clock = FakeClock()
    access_log = AccessLogInterceptor(clock, log_all=False)
    with capture_logs() as lines:
        await refusals(access_log, clock, 10_000)
    assert [line["event"] for line in lines] == ["rpc"] * 500
    await clock.advance(1)
    with capture_logs() as lines:
        await refusals(access_log, clock, 200)
    assert lines[0] == {"event": "rpc_lines_left_out", "count": 9_500, "log_level": "warning"}
    assert len(lines) == 1 + 100


async def test_calls_that_went_well_leave_no_line_unless_all_are_wanted() -> None:
    async def answer(call: Call) -> str:
        return "fine"

    clock = FakeClock()
    with capture_logs() as lines:
        await AccessLogInterceptor(clock, log_all=False).intercept(a_call(clock), answer)
        assert lines == []
        await AccessLogInterceptor(clock, log_all=True).intercept(a_call(clock), answer)
    assert [line["code"] for line in lines] == ["OK"]
