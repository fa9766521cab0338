from localsuite.supervision.backoff import RestartHistory, RestartPolicy

POLICY = RestartPolicy(first_seconds=0.5, longest_seconds=4.0, give_up_after=4, window_seconds=60.0)


def history_of(*ends: float) -> RestartHistory:
    history = RestartHistory(POLICY)
    for end in ends:
        history = history.ended(end)
    return history


def test_after_the_first_restart_delays_double_up_to_the_longest() -> None:
    delays = []
    history = RestartHistory(RestartPolicy(0.5, 4.0, give_up_after=99, window_seconds=60.0))
    for second in range(6):
        history = history.ended(float(second))
        delays.append(history.delay_seconds)
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 4.0]


def test_one_that_lived_for_a_while_is_started_again_at_once() -> None:
    assert history_of(0, 1, 20).delay_seconds == 0.0
    assert history_of(0, 20, 21).delay_seconds == 0.5


def test_a_process_that_keeps_dying_is_given_up() -> None:
    assert not history_of(0, 1, 2).hopeless
    assert history_of(0, 1, 2, 3).hopeless


def test_ends_long_ago_count_no_more() -> None:
    history = history_of(0, 1, 2, 100)
    assert not history.hopeless
    assert history.delay_seconds == 0.0
