"""What readings say of a GPU's driver, the epochs of its counters, and the XID catalogue."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.driver_health import (
    CounterWatch,
    DriverEpochs,
    GpuHealth,
    change_of_health,
    health_of,
)
from gpu_metrics.domain.gpu_events import GpuEventKind, Severity
from gpu_metrics.domain.readings import CountReading, MissingReason
from gpu_metrics.domain.xid_catalogue import XidAction, xid_facts


@pytest.mark.parametrize(
    ("figures", "health"),
    [
        ({"power_milliwatts": 1, "energy_millijoules": MissingReason.LOST}, GpuHealth.ANSWERING),
        ({"power_milliwatts": MissingReason.LOST}, GpuHealth.LOST),
        ({"power_milliwatts": MissingReason.HUNG}, GpuHealth.HUNG),
        ({"power_milliwatts": MissingReason.TIMEOUT}, GpuHealth.SLOW),
        ({"power_milliwatts": MissingReason.UNREACHABLE}, GpuHealth.SLOW),
    ],
)
def test_a_gpu_is_lost_or_hung_when_nothing_of_it_is_read(
    figures: dict[str, CountReading], health: GpuHealth
) -> None:
    assert health_of(figures) is health


@pytest.mark.parametrize(
    ("seen", "events"),
    [
        ([GpuHealth.SLOW, GpuHealth.HUNG, GpuHealth.HUNG], [GpuEventKind.GPU_HUNG]),
        (
            [GpuHealth.HUNG, GpuHealth.SLOW, GpuHealth.ANSWERING],
            [GpuEventKind.GPU_HUNG, GpuEventKind.GPU_BACK],
        ),
        (
            [GpuHealth.HUNG, GpuHealth.LOST, GpuHealth.ANSWERING],
            [GpuEventKind.GPU_HUNG, GpuEventKind.GPU_LOST, GpuEventKind.GPU_BACK],
        ),
        ([GpuHealth.SLOW, GpuHealth.ANSWERING], []),
    ],
)
def test_each_change_is_an_event_once(seen: list[GpuHealth], events: list[GpuEventKind]) -> None:
    health, told = GpuHealth.ANSWERING, []
    for each in seen:
        health, happened = change_of_health(health, each)
        if happened is not None:
            told.append(happened)
    assert told == events


@given(st.lists(st.integers(min_value=0, max_value=2**63), min_size=1))
def test_no_difference_within_an_epoch_is_negative(energies: list[int]) -> None:
    watch, epochs = CounterWatch(), DriverEpochs()
    epoch = epochs.start(1)
    read: list[tuple[int, int]] = []
    for energy in energies:
        if watch.restarted({"energy_millijoules": energy}):
            epoch, _ = epochs.restart(epoch, 1)
        read.append((epoch, energy))
    for (epoch_before, before), (epoch_after, after) in itertools.pairwise(read):
        assert epoch_after >= epoch_before
        assert epoch_after > epoch_before or after >= before


def test_a_missing_counter_is_no_fall() -> None:
    watch = CounterWatch()
    watch.restarted({"energy_millijoules": 10})
    assert not watch.restarted({"energy_millijoules": MissingReason.LOST})
    assert watch.restarted({"energy_millijoules": 9})


def test_gpus_join_the_epoch_that_the_first_of_them_started() -> None:
    epochs = DriverEpochs()
    loaded = epochs.start(1000)
    first, is_news = epochs.restart(loaded, 2000)
    second, is_news_again = epochs.restart(loaded, 2000)
    assert (first, is_news) == (second, True) == (2000, True)
    assert not is_news_again


@pytest.mark.parametrize(
    ("code", "action", "severity"),
    [
        (31, XidAction.RESTART_APPLICATION, Severity.WARNING),
        (48, XidAction.FOLLOW_ECC, Severity.CRITICAL),
        (63, XidAction.NOTHING, Severity.INFO),
        (74, XidAction.CHECK_NVLINK, Severity.CRITICAL),
        (79, XidAction.RESTART_HOST, Severity.CRITICAL),
        (94, XidAction.RESTART_APPLICATION, Severity.WARNING),
        (95, XidAction.RESET_GPU, Severity.CRITICAL),
        (119, XidAction.RESET_GPU, Severity.CRITICAL),
    ],
)
def test_the_xids_that_matter_most_say_what_is_to_be_done(
    code: int, action: XidAction, severity: Severity
) -> None:
    facts = xid_facts(code)
    assert (facts.action, facts.severity, facts.known) == (action, severity, True)


@given(st.integers(min_value=0, max_value=2**32))
def test_every_code_has_an_answer_that_fits_in_an_event(code: int) -> None:
    facts = xid_facts(code)
    assert facts.severity is not Severity.UNKNOWN
    assert 0 < len(facts.action.value) <= 128
    assert 0 < len(facts.description) <= 256


def test_a_code_that_the_catalogue_does_not_use_says_so() -> None:
    facts = xid_facts(999)
    assert (facts.known, facts.action) == (False, XidAction.CONTACT_SUPPORT)
