from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.latency_window import LatencyWindow, ObservationOutcome


def cumulative(fast: int, slow: int = 0) -> Histogram:
    return Histogram((0.1,), (fast, slow), 0.05 * fast + 1.0 * slow)


def make_window() -> LatencyWindow:
    return LatencyWindow(slot_seconds=5.0, retained_seconds=60.0)


def test_without_any_histogram_there_is_no_window() -> None:
    assert make_window().recent(100.0, 60.0) is None


def test_what_a_server_counted_before_it_was_first_seen_is_not_recent() -> None:
    window = make_window()
    assert window.observe(cumulative(1000), 100.0) is ObservationOutcome.BASELINE
    recent = window.recent(100.0, 60.0)
    assert recent is not None
    assert recent.count == 0
    assert window.observe(cumulative(1003), 101.0) is ObservationOutcome.INCREASE
    recent = window.recent(101.0, 60.0)
    assert recent is not None
    assert recent.count == 3


def test_observations_leave_the_window_when_they_are_older_than_it() -> None:
    window = make_window()
    window.observe(cumulative(0), 0.0)
    window.observe(cumulative(7), 1.0)
    for second in range(2, 120):
        window.observe(cumulative(7), float(second))
        recent = window.recent(float(second), 60.0)
        assert recent is not None
        # Whole slots of 5 s: gone between 60 and 65 s after the slot began.
        assert recent.count == (7 if second < 65 else 0)


def test_after_a_server_restart_everything_it_counts_is_new() -> None:
    window = make_window()
    window.observe(cumulative(100, 5), 0.0)
    window.observe(cumulative(110, 5), 1.0)
    assert window.observe(cumulative(4, 1), 2.0) is ObservationOutcome.SERVER_RESTARTED
    recent = window.recent(2.0, 60.0)
    assert recent is not None
    assert recent.counts == (14, 1)


def test_changed_bounds_start_the_window_again_instead_of_mixing() -> None:
    window = make_window()
    window.observe(cumulative(0), 0.0)
    window.observe(cumulative(10), 1.0)
    changed = Histogram((0.2,), (12, 0), 0.6)
    assert window.observe(changed, 2.0) is ObservationOutcome.BOUNDS_CHANGED
    window.observe(Histogram((0.2,), (13, 0), 0.7), 3.0)
    recent = window.recent(3.0, 60.0)
    assert recent is not None
    assert (recent.bounds, recent.counts) == ((0.2,), (1, 0))


def test_after_a_silence_longer_than_is_kept_the_next_histogram_is_a_baseline() -> None:
    window = make_window()
    window.observe(cumulative(0), 0.0)
    assert window.observe(cumulative(500), 3600.0) is ObservationOutcome.BASELINE
    recent = window.recent(3600.0, 60.0)
    assert recent is not None
    assert recent.count == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 20.0), st.integers(0, 50)), min_size=1, max_size=60))
def test_intervals_of_slots_count_every_observation_exactly_once(
    steps: list[tuple[float, int]],
) -> None:
    window = LatencyWindow(slot_seconds=5.0, retained_seconds=2000.0)
    now, total = 0.0, 0
    window.observe(cumulative(0), now)
    for pause, increase in steps:
        now += pause
        total += increase
        window.observe(cumulative(total), now)
    last_slot = int(now // 5.0)
    intervals = [window.between(first, first + 2) for first in range(0, last_slot + 1, 3)]
    assert sum(each.count for each in intervals if each is not None) == total


def test_memory_is_bounded_however_long_a_server_runs() -> None:
    window = make_window()
    for second in range(10_000):
        window.observe(cumulative(second), float(second))
    assert len(window._slots) <= 60 / 5 + 2


def test_an_empty_window_keeps_the_bounds() -> None:
    window = make_window()
    window.observe(cumulative(3), 0.0)
    recent = window.recent(500.0, 60.0)
    assert recent == Histogram((0.1,), (0, 0), 0.0)
