"""What of the fleet needs attention is told when it begins and when it ends, and never twice."""

from datetime import timedelta

import pytest

from gaming.gpu_metrics.v1 import alerts_pb2
from gpu_metrics.alert_settings import parse_hold_times
from gpu_metrics.domain.alerts import (
    AlertEnded,
    AlertKind,
    AlertNotFound,
)
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, Severity
from gpu_metrics.domain.readings import (
    Host,
    HostReport,
    MissingReason,
    ModelServerState,
)

from .alert_fleet import (
    CLEARED,
    RAISED,
    RUNBOOKS,
    Fleet,
    failed_gpu,
    gpu,
    moment,
)
from .builders import NOON, make_server


def test_a_host_that_falls_silent_and_reports_again_is_told_once_each() -> None:
    fleet = Fleet()
    fleet.report(0)
    assert fleet.look(4) == []
    assert fleet.look(5) == [(AlertKind.HOST_SILENT, RAISED)]
    assert fleet.look(6) == []
    fleet.report(7)
    assert fleet.look(7) == [(AlertKind.HOST_SILENT, CLEARED)]
    assert fleet.look(8) == []


def test_a_silent_host_that_is_given_up_is_lost_until_it_reports_again() -> None:
    fleet = Fleet()
    fleet.report(0)
    fleet.look(5)
    silent, lost = fleet.changes(60)
    assert (silent.alert.condition.kind, silent.kind) == (AlertKind.HOST_SILENT, CLEARED)
    assert (silent.replaced, lost.replaced) == (True, False)
    assert (lost.alert.condition.kind, lost.kind) == (AlertKind.HOST_LOST, RAISED)
    assert fleet.look(61) == []
    fleet.report(100)
    assert fleet.look(100) == [(AlertKind.HOST_LOST, CLEARED)]


def test_a_lost_host_that_never_comes_back_is_over_after_a_day() -> None:
    fleet = Fleet()
    fleet.report(0)
    fleet.look(5)
    fleet.look(60)
    assert fleet.look(60 + 86_399) == []
    assert fleet.look(60 + 86_400) == [(AlertKind.HOST_LOST, CLEARED)]


def test_a_host_that_leaves_on_purpose_or_was_taken_back_with_notice_is_no_alert() -> None:
    fleet = Fleet()
    fleet.report(0)
    fleet.look(0)
    fleet.report(1, leaving=True)
    assert fleet.look(100) == []
    noticed = Host(host_id="i-2", interruption_time=NOON)
    fleet.view.apply(HostReport(host=noticed, boot_id="b", sequence=1, sample_time=NOON), 0, NOON)
    assert fleet.look(130) == []
    assert fleet.look(300) == []


@pytest.mark.parametrize(
    ("missing", "kind", "words"),
    [
        (MissingReason.LOST, AlertKind.GPU_LOST, "fell off the bus"),
        (MissingReason.HUNG, AlertKind.GPU_HUNG, "does not answer"),
        (MissingReason.TIMEOUT, AlertKind.GPU_HUNG, "does not answer"),
        (MissingReason.UNREACHABLE, AlertKind.DRIVER_UNREACHABLE, "cannot be reached"),
    ],
)
def test_a_gpu_that_answers_for_nothing_is_told_once_it_stays_so_and_once_it_works_again(
    missing: MissingReason, kind: AlertKind, words: str
) -> None:
    fleet = Fleet()
    for second, told in ((0, []), (2.9, []), (3, [(kind, RAISED)])):
        fleet.report(second, gpus=(failed_gpu(missing),))
        assert fleet.look(second) == told
    (alert,) = fleet.book.standing()
    assert words in alert.reason
    for second, told in ((4, []), (8.9, []), (9, [(kind, CLEARED)])):
        fleet.report(second, gpus=(gpu(),))
        assert fleet.look(second) == told


def test_a_single_late_answer_and_a_reading_that_is_not_offered_are_no_failures() -> None:
    fleet = Fleet()
    for second in range(12):
        late = failed_gpu(MissingReason.TIMEOUT) if second % 2 else gpu()
        fleet.report(second, gpus=(late,), host_id="late")
        fleet.report(second, gpus=(failed_gpu(MissingReason.UNSUPPORTED),), host_id="old")
        partly = gpu(power_milliwatts=MissingReason.TIMEOUT)
        fleet.report(second, gpus=(partly,), host_id="partly")
        assert fleet.look(second) == []


def test_a_failure_that_flickers_is_one_alert_until_it_stays_away() -> None:
    fleet = Fleet()
    for second in range(30):
        sick = gpu() if second % 5 == 4 else failed_gpu()
        fleet.report(second, gpus=(sick,))
        fleet.look(second)
        assert fleet.standing() == ({AlertKind.GPU_LOST} if second >= 3 else set())
    assert list(fleet.book.ended()) == []


def test_a_server_that_stays_unhealthy_is_told_and_cleared() -> None:
    fleet = Fleet(clear_seconds={AlertKind.SERVER_UNHEALTHY: 0})
    sick = make_server("gold-1", state=ModelServerState.UNHEALTHY)
    fleet.report(0, sick)
    fleet.look(0)
    fleet.report(3, sick)
    assert fleet.look(3) == [(AlertKind.SERVER_UNHEALTHY, RAISED)]
    fleet.report(4, make_server("gold-1"))
    assert fleet.look(4) == [(AlertKind.SERVER_UNHEALTHY, CLEARED)]


def test_while_a_host_is_silent_nothing_is_said_of_what_is_on_it() -> None:
    fleet = Fleet()
    sick = make_server("gold-1", state=ModelServerState.UNHEALTHY)
    for second in (0, 3):
        fleet.report(second, sick)
        fleet.look(second)
    assert fleet.look(8) == [(AlertKind.HOST_SILENT, RAISED)]
    assert fleet.look(50) == []
    fleet.report(51, make_server("gold-1"))
    assert fleet.look(51) == [(AlertKind.HOST_SILENT, CLEARED)]
    fleet.report(56, make_server("gold-1"))
    assert fleet.look(56) == [(AlertKind.SERVER_UNHEALTHY, CLEARED)]


def test_an_event_of_a_host_whose_reports_are_missing_is_told_all_the_same() -> None:
    fleet = Fleet()
    fleet.report(0, gpus=(gpu(),))
    fleet.look(0)
    assert fleet.look(5) == [(AlertKind.HOST_SILENT, RAISED)]
    assert fleet.xid(6) == [(AlertKind.XID, RAISED)]
    assert fleet.standing() == {AlertKind.HOST_SILENT, AlertKind.XID}


@pytest.mark.parametrize(
    ("bits", "kinds"),
    [
        (0x20, {AlertKind.THERMAL_THROTTLING}),
        (0x40 | 0x08, {AlertKind.THERMAL_THROTTLING}),
        (0x80 | 0x08, {AlertKind.POWER_THROTTLING}),
        (0x08, {AlertKind.POWER_THROTTLING}),
        (0x40 | 0x80, {AlertKind.THERMAL_THROTTLING, AlertKind.POWER_THROTTLING}),
        # Idle, clocks that somebody set, and the power limit of every busy GPU are no trouble.
        (0x01 | 0x02 | 0x04 | 0x10 | 0x100, set()),
    ],
)
def test_clocks_that_are_held_back_for_a_while_are_told_by_their_cause(
    bits: int, kinds: set[AlertKind]
) -> None:
    fleet = Fleet()
    for second in range(11):
        fleet.report(second, gpus=(gpu(clock_event_reasons=bits),))
        fleet.look(second)
        assert fleet.standing() == (kinds if second == 10 else set())
    for second in (11, 40):
        fleet.report(second, gpus=(gpu(clock_event_reasons=0),))
        fleet.look(second)
        assert fleet.standing() == kinds
    fleet.report(41, gpus=(gpu(clock_event_reasons=0),))
    fleet.look(41)
    assert fleet.standing() == set()


def test_new_uncorrected_memory_errors_of_one_run_of_the_driver_are_told() -> None:
    fleet = Fleet()
    totals = [(7, 2), (7, 2), (8, 5), (8, 5), (8, 6)]
    for second, (epoch, total) in enumerate(totals):
        fleet.report(second, gpus=(gpu(ecc_uncorrected_total=total, driver_epoch=epoch),))
        told = [(AlertKind.ECC_UNCORRECTED, RAISED)] if second == 4 else []
        assert fleet.look(second) == told
    (alert,) = fleet.book.standing()
    assert "1 memory errors could not be corrected, 6 since" in alert.reason
    fleet.report(5, gpus=(gpu(),))
    assert fleet.look(5) == []
    fleet.report(905, gpus=(gpu(ecc_uncorrected_total=6, driver_epoch=8),))
    assert (AlertKind.ECC_UNCORRECTED, CLEARED) in fleet.look(905)


def test_a_clock_that_is_off_by_more_than_the_window_is_told() -> None:
    fleet = Fleet(skew_seconds=60.0, raise_seconds={AlertKind.CLOCK_SKEW: 0})
    fleet.report(0)
    (state,) = fleet.view.hosts(0)
    for skew, told in ((60.0, 0), (-61.0, 1)):
        changes = fleet.book.look([state._replace(clock_skew_seconds=skew)], (), moment(0))
        assert len(changes) == told
    assert changes[0].alert.reason == "The host's clock is 61.0 s behind the collector's."


@pytest.mark.parametrize("severity", list(Severity))
def test_an_xid_that_calls_for_action_is_told_at_once(severity: Severity) -> None:
    fleet = Fleet()
    told = fleet.xid(1, severity=severity, description="GPU has fallen off the bus")
    grave = severity in (Severity.WARNING, Severity.CRITICAL)
    assert told == ([(AlertKind.XID, RAISED)] if grave else [])
    for alert in fleet.book.standing():
        assert (alert.severity, alert.condition.xid) == (severity, 79)
        assert alert.reason == "XID 79: GPU has fallen off the bus."


def test_an_xid_that_comes_again_is_the_same_alert_and_is_over_once_it_stays_away() -> None:
    fleet = Fleet()
    fleet.report(0, gpus=(gpu(),))
    fleet.look(0)
    assert fleet.xid(0) == [(AlertKind.XID, RAISED)]
    assert fleet.xid(600) == []
    assert fleet.xid(601, xid=48) == [(AlertKind.XID, RAISED)]
    for second, told in ((1499, 0), (1500, 1), (1501, 1)):
        fleet.report(second, gpus=(gpu(),))
        changes = [each for each in fleet.look(second) if each[0] is AlertKind.XID]
        assert changes == [(AlertKind.XID, CLEARED)] * told
    assert fleet.xid(1600) == [(AlertKind.XID, RAISED)]


def test_what_the_journal_tells_of_a_gpu_needs_no_confirmation() -> None:
    fleet = Fleet()
    fleet.report(0, gpus=(gpu(),))
    fleet.look(0)
    assert fleet.event(0.5, GpuEventKind.GPU_LOST) == [(AlertKind.GPU_LOST, RAISED)]
    fleet.report(1, gpus=(failed_gpu(),))
    assert fleet.look(1) == []
    assert fleet.event(2, GpuEventKind.GPU_BACK) == []
    fleet.report(3, gpus=(gpu(),))
    fleet.look(3)
    fleet.report(8, gpus=(gpu(),))
    assert fleet.look(8) == [(AlertKind.GPU_LOST, CLEARED)]


def test_a_gpu_that_answers_after_it_was_told_lost_is_not() -> None:
    fleet = Fleet()
    fleet.event(0, GpuEventKind.GPU_HUNG)
    for second in (1, 6):
        fleet.report(second, gpus=(gpu(),))
        told = fleet.look(second)
    assert told == [(AlertKind.GPU_HUNG, CLEARED)]


def test_a_driver_that_does_not_match_is_told_until_it_is_loaded_anew() -> None:
    fleet = Fleet()
    told = fleet.event(0, GpuEventKind.DRIVER_MISMATCH, gpu_uuid="")
    assert told == [(AlertKind.DRIVER_UNREACHABLE, RAISED)]
    fleet.event(1, GpuEventKind.DRIVER_RELOADED, gpu_uuid="")
    fleet.look(1)
    assert fleet.look(7) == [(AlertKind.DRIVER_UNREACHABLE, CLEARED)]


def test_events_that_are_read_again_raise_what_still_matters_and_nothing_that_is_over() -> None:
    fleet = Fleet()
    assert fleet.event(5000, GpuEventKind.GPU_LOST, when=100) == []
    assert fleet.event(5000, GpuEventKind.GPU_BACK, when=200) == []
    assert fleet.xid(5000, when=300) == []
    assert fleet.xid(5000, when=4900) == [(AlertKind.XID, RAISED)]


def test_an_old_event_raises_nothing_by_itself_for_its_end_may_not_have_arrived() -> None:
    fleet = Fleet()
    fleet.event(5000, GpuEventKind.GPU_LOST, when=100)
    for second in (5000, 5004):
        fleet.report(second)
        assert fleet.look(second) == []
    for second in (5005, 5009):
        fleet.report(second, gpus=(failed_gpu(),))
        told = fleet.look(second)
    assert told == [(AlertKind.GPU_LOST, RAISED)]


def test_two_collectors_that_see_the_same_give_the_same_ids_one_of_them_later() -> None:
    first, second = Fleet(), Fleet()
    for fleet, late in ((first, 0.0), (second, 40.0)):
        fleet.report(0, gpus=(failed_gpu(),))
        fleet.look(late)
        fleet.xid(late + 1, when=1)
        fleet.event(late + 1, GpuEventKind.GPU_LOST, when=1)
        fleet.report(late + 4, gpus=(failed_gpu(),))
        fleet.look(late + 4)
        fleet.report(late + 8, gpus=(failed_gpu(),))
        fleet.look(late + 8)
    ids = [{alert.alert_id for alert in fleet.book.standing()} for fleet in (first, second)]
    assert len(ids[0]) == 2
    assert ids[0] == ids[1]


def test_the_next_occurrence_is_another_alert() -> None:
    fleet = Fleet()
    ids = []
    for start in (0, 100):
        for second in (0, 5):
            fleet.report(start + second, gpus=(failed_gpu(),))
            changes = fleet.changes(start + second)
        ids += [change.alert.alert_id for change in changes if change.kind is RAISED]
        for second in (6, 12):
            fleet.report(start + second, gpus=(gpu(),))
            fleet.look(start + second)
    assert len(set(ids)) == 2
    assert all(each.startswith("gpu-lost-") for each in ids)


def test_an_xid_of_a_host_whose_agent_starts_again_is_the_same_alert() -> None:
    fleet = Fleet()
    fleet.report(0, gpus=(gpu(),))
    fleet.look(0)
    fleet.xid(1)
    (before,) = fleet.book.standing()
    fleet.report(2, gpus=(gpu(),), leaving=True)
    assert fleet.look(2) == [(AlertKind.XID, CLEARED)]
    fleet.report(9, gpus=(gpu(),), boot_id="boot-2")
    assert fleet.look(9) == [(AlertKind.XID, RAISED)]
    (again,) = fleet.book.standing()
    assert again.alert_id == before.alert_id
    assert list(fleet.book.ended()) == []


def test_who_looks_after_an_alert_is_noted_once() -> None:
    fleet = Fleet()
    fleet.xid(0)
    (alert,) = fleet.book.standing()
    change = fleet.book.acknowledge(alert.alert_id, who="kim", note="on it", now=moment(1))
    assert change is not None
    assert (change.alert.acknowledged_by, change.alert.note) == ("kim", "on it")
    assert fleet.book.acknowledge(alert.alert_id, who="kim", note="on it", now=moment(2)) is None
    assert fleet.book.find(alert.alert_id).acknowledge_time == NOON + timedelta(seconds=1)
    assert fleet.book.acknowledge(alert.alert_id, who="lee", note="mine", now=moment(3))
    with pytest.raises(AlertNotFound):
        fleet.book.acknowledge("xid-0", who="kim", note="", now=moment(3))
    fleet.look(901)
    with pytest.raises(AlertEnded):
        fleet.book.acknowledge(alert.alert_id, who="kim", note="", now=moment(902))


def test_a_lost_host_can_be_looked_after_too() -> None:
    fleet = Fleet()
    fleet.report(0)
    fleet.look(5)
    fleet.look(60)
    (alert,) = fleet.book.standing()
    fleet.book.acknowledge(alert.alert_id, who="kim", note="", now=moment(61))
    assert next(iter(fleet.book.standing())).acknowledged_by == "kim"


def test_of_alerts_that_ended_only_the_last_are_remembered() -> None:
    fleet = Fleet(history=2)
    for code in range(5):
        fleet.xid(code, xid=code)
    fleet.look(2000)
    assert [alert.condition.xid for alert in fleet.book.ended()] == [3, 4]


def test_an_agent_that_makes_up_codes_does_not_fill_the_collector() -> None:
    fleet = Fleet()
    events = [
        GpuEvent(
            sequence=code, kind=GpuEventKind.XID, time=NOON, xid=code, severity=Severity.CRITICAL
        )
        for code in range(1, 2001)
    ]
    for batch in range(0, 2000, 250):
        fleet.book.take_events("i-1", "j", events[batch : batch + 250], moment(0))
    assert len(list(fleet.book.standing())) <= 512
    fleet.look(2000)
    assert fleet.standing() == set()
    assert fleet.book.host_ids() == ()


def test_every_kind_has_a_runbook_that_says_what_it_means_and_what_to_do() -> None:
    for kind in AlertKind:
        text = (RUNBOOKS / f"{kind.slug}.md").read_text()
        for heading in (
            "## What it means",
            "## How to look",
            "## What to do",
            "## When it is over",
        ):
            assert heading in text, f"{kind.slug}: {heading}"
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {kind.slug for kind in AlertKind}


def test_kinds_are_those_of_the_protocol() -> None:
    for kind in AlertKind:
        name = alerts_pb2.AlertKind.Name(kind.value)  # type: ignore[arg-type]  # the same numbers
        assert name == f"ALERT_KIND_{kind.name}"
    assert len(AlertKind) == len(alerts_pb2.AlertKind.keys()) - 1


def test_hold_times_are_read_by_kind() -> None:
    times = parse_hold_times("gpu-lost=0, thermal-throttling=2.5")
    assert [str(each) for each in times] == ["gpu-lost=0", "thermal-throttling=2.5"]
    for wrong in ("gpu-lost", "gpu-lost=-1", "nothing=1", "xid=soon", "xid=nan"):
        with pytest.raises(ValueError, match="must be kind=seconds"):
            parse_hold_times(wrong)
