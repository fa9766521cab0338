"""A clock whose wall time never jumps, whatever is done to the machine's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from servicekit.clock import SteadyClock

START = datetime(2026, 5, 1, tzinfo=UTC)


class SetClock:
    """A machine's clock that a test sets."""

    def __init__(self) -> None:
        self.wall = START
        self.stopwatch = 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.stopwatch

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def advance(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.stopwatch += seconds


@pytest.mark.parametrize("jump_hours", [-1, 1])
def test_a_jump_of_the_wall_clock_changes_no_duration_by_more_than_a_hundredth(
    jump_hours: int,
) -> None:
    machine = SetClock()
    clock = SteadyClock(machine)
    machine.advance(100)
    before = clock.now()
    machine.wall += timedelta(hours=jump_hours)
    assert clock.now() == before
    machine.advance(100)
    passed = (clock.now() - before).total_seconds()
    assert passed == pytest.approx(100, abs=1.001)


def test_it_comes_to_agree_with_the_machine_in_time() -> None:
    machine = SetClock()
    clock = SteadyClock(machine)
    machine.wall += timedelta(seconds=10)
    for _ in range(200):
        machine.advance(10)
        clock.now()
    assert clock.now() == machine.now()


def test_it_never_goes_back() -> None:
    machine = SetClock()
    clock = SteadyClock(machine)
    machine.wall -= timedelta(hours=1)
    moments = []
    for _ in range(50):
        machine.advance(1)
        moments.append(clock.now())
    assert moments == sorted(moments)
    assert moments[0] < moments[-1]
