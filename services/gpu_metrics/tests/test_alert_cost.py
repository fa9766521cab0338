"""What alerts cost while nothing happens does not grow with the fleet."""

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from gpu_metrics import wire
from gpu_metrics.domain.alerts import AlertKind
from gpu_metrics.domain.readings import GpuReading, MissingReason, ModelServerState
from gpu_metrics.wire.lazy import LazyGpus

from .alert_fleet import RAISED, Fleet, failed_gpu, gpu, moment
from .builders import NOON, make_report, make_server


def functions_called(work: Callable[[], object]) -> int:
    """How many functions of Python a piece of work calls."""
    calls = 0

    def count(_: Any, event: str, __: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def fleet_of(hosts: int) -> Fleet:
    fleet = Fleet()
    for number in range(hosts):
        fleet.report(0, host_id=f"i-{number}", gpus=(gpu(),))
    fleet.look(0)
    return fleet


@pytest.mark.parametrize("silent", [False, True])
def test_time_that_passes_costs_the_same_for_a_host_and_for_300(silent: bool) -> None:
    calls = []
    for hosts in (1, 300):
        fleet = fleet_of(hosts)
        if silent:
            assert len(fleet.look(6)) == hosts
        calls.append(functions_called(partial(fleet.book.pass_time, moment(6.5))))
    assert calls[0] == calls[1]


def test_a_change_of_one_host_costs_the_same_among_two_and_among_300() -> None:
    calls = []
    for hosts in (2, 300):
        fleet = fleet_of(hosts)
        fleet.report(1, host_id="i-1", gpus=(gpu(),))
        calls.append(functions_called(partial(fleet.view.changes_since, fleet.revision, 1.0)))
    assert calls[0] == calls[1]


def as_sent(*gpus: GpuReading) -> LazyGpus:
    return LazyGpus([wire.gpu_message(each) for each in gpus])


@pytest.mark.parametrize("bits", [0, 0x40])
def test_reports_that_show_what_the_last_one_showed_are_not_looked_at_closely(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    closely: list[LazyGpus] = []
    figures_of = LazyGpus.alert_figures

    def counted(gpus: LazyGpus) -> Any:
        closely.append(gpus)
        return figures_of(gpus)

    monkeypatch.setattr(LazyGpus, "alert_figures", counted)
    fleet = Fleet()
    reading = gpu(clock_event_reasons=bits, memory_used_bytes=2**30, ecc_uncorrected_total=0)
    for second in range(60):
        fleet.report(second, gpus=as_sent(reading))
        fleet.look(second)
    # Heat is looked at until it has lasted for ten seconds.
    assert len(closely) == (11 if bits else 1)
    cooled = gpu(clock_event_reasons=0, memory_used_bytes=2**30, ecc_uncorrected_total=0)
    for second in (60, 90):
        fleet.report(second, gpus=as_sent(cooled))
        fleet.look(second)
    assert fleet.standing() == set()


@pytest.mark.parametrize(
    ("change", "kind", "held"),
    [
        (failed_gpu(), AlertKind.GPU_LOST, 3),
        (gpu(memory_used_bytes=1, clock_event_reasons=0x80), AlertKind.POWER_THROTTLING, 10),
        (gpu(memory_used_bytes=1, ecc_uncorrected_total=1), AlertKind.ECC_UNCORRECTED, 0),
        (
            gpu(memory_used_bytes=MissingReason.LOST, utilization_permille=MissingReason.LOST),
            None,
            3,
        ),
    ],
)
def test_what_begins_after_a_long_calm_is_told(
    change: GpuReading, kind: AlertKind | None, held: int
) -> None:
    fleet = Fleet()
    for second in range(5):
        fleet.report(second, gpus=as_sent(gpu(memory_used_bytes=1)))
        fleet.look(second)
    for second in range(5, 10):
        fleet.report(second, gpus=as_sent(gpu(memory_used_bytes=1, ecc_uncorrected_total=0)))
        fleet.look(second)
    for second in range(10, 11 + held):
        fleet.report(second, gpus=as_sent(change))
        told = fleet.look(second)
    assert told == ([(kind, RAISED)] if kind else [])


def test_a_server_that_fails_after_a_long_calm_is_told() -> None:
    fleet = Fleet(raise_seconds=dict.fromkeys(AlertKind, 0.0))
    for second in range(5):
        fleet.report(second, gpus=as_sent(gpu(memory_used_bytes=1)))
        assert fleet.look(second) == []
    sick = make_server("gold-1", state=ModelServerState.UNHEALTHY)
    fleet.report(5, sick, gpus=as_sent(gpu(memory_used_bytes=1)))
    assert fleet.look(5) == [(AlertKind.SERVER_UNHEALTHY, RAISED)]


def test_a_host_that_turns_stale_is_told_of_after_others_have_reported() -> None:
    fleet = Fleet()
    fleet.report(0, host_id="i-1")
    fleet.report(3, host_id="i-2")
    fleet.look(3)
    report = make_report("i-3", 1)
    fleet.view.advance(6)
    fleet.view.apply(report, 6, NOON + timedelta(seconds=6))
    assert fleet.look(6) == [(AlertKind.HOST_SILENT, RAISED)]
