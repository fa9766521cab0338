import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaming.ai_router.v1 import ai_router_pb2
from gaming.common.v1 import tier_pb2
from localsuite.game.feed import Feed, GameSample, StoryTurn, TierSample, parse_line
from localsuite.game.players import evening_curve, players_online
from localsuite.game.requests import evening_requests
from localsuite.game.tally import Answer, TierTally, percentile

ANSWER = Answer(0.1, 0.009, 40, cached=False, fell_back=False)


def requests_of(seed: int, players: int = 200) -> list[bytes]:
    curve = evening_curve(peak_players=players, duration_seconds=40.0)
    return [
        request.message.SerializeToString(deterministic=True)
        for request in evening_requests(curve, requests_per_player_second=0.05, seed=seed)
    ]


def test_players_come_and_go_between_zero_and_the_peak() -> None:
    curve = evening_curve(peak_players=1000, duration_seconds=120.0)
    online = [players_online(curve, float(at)) for at in range(121)]
    assert online[0] == online[-1] == 0
    assert 990 <= max(online) <= 1000
    surge = [online[at + 5] - online[at] for at in range(115)]
    assert max(surge) > 450


def test_the_same_seed_makes_the_same_evening() -> None:
    assert requests_of(7) == requests_of(7)
    assert requests_of(7) != requests_of(8)


def test_requests_follow_the_players_and_want_all_tiers() -> None:
    curve = evening_curve(peak_players=1000, duration_seconds=120.0)
    requests = list(evening_requests(curve, requests_per_player_second=0.05, seed=1))
    expected = 0.05 * float(np.trapezoid(curve.players, curve.times_seconds))
    assert len(requests) == pytest.approx(expected, rel=0.1)
    times = [request.at_seconds for request in requests]
    assert times == sorted(times)
    wanted = Counter(request.tier for request in requests)
    assert wanted[tier_pb2.TIER_GOLD] > wanted[tier_pb2.TIER_SILVER] > wanted[tier_pb2.TIER_BRONZE]
    assert wanted[tier_pb2.TIER_BRONZE] > 0


def test_every_request_is_within_the_contract() -> None:
    import protovalidate  # noqa: PLC0415  # slow to import, for this test only

    curve = evening_curve(peak_players=300, duration_seconds=40.0)
    for request in evening_requests(curve, requests_per_player_second=0.05, seed=3):
        protovalidate.validate(request.message)
        assert isinstance(request.message, ai_router_pb2.GenerateRequest)


def test_what_is_sent_is_completed_shed_failed_or_in_flight() -> None:
    tally = TierTally()
    tally.sent = 5
    tally.complete(ANSWER, now=1.0)
    tally.shed["QUEUE_FULL"] += 1
    tally.failed["UNAVAILABLE"] += 2
    assert tally.in_flight == 1


def test_latencies_are_of_the_window_and_leave_cached_answers_out() -> None:
    tally = TierTally()
    tally.complete(Answer(9.0, 0.5, 40, cached=False, fell_back=False), now=0.0)
    tally.complete(ANSWER, now=50.0)
    tally.complete(Answer(0.001, 0.0001, 40, cached=True, fell_back=False), now=50.0)
    assert tally.first_token_p95_seconds(now=51.0, window_seconds=10.0) == 0.1
    assert tally.seconds_per_token_p95(now=51.0, window_seconds=10.0) == 0.009
    assert tally.first_token_p95_seconds(now=99.0, window_seconds=10.0) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_enough_values_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_the_feed_comes_out_as_it_went_in() -> None:
    written = io.StringIO()
    feed = Feed(written)
    sample = GameSample(1.5, 20, {"gold": TierSample(sent=3, completed=2, shed={"QUEUE_FULL": 1})})
    turn = StoryTurn(1, "knocks", ("a door",), 1, 0, ("lore.md",), "It opens.", 0.4)
    feed.sample(sample)
    feed.story(turn)
    feed.note("the doors open")
    feed.finished(sample)
    told = [parse_line(line) for line in written.getvalue().splitlines()]
    assert told == [
        ("sample", sample),
        ("story", turn),
        ("note", "the doors open"),
        ("finished", sample),
    ]


@pytest.mark.parametrize("line", ["", "{}", '{"type":"dance"}', '{"type":"sample"}', "[1]"])
def test_a_line_that_is_not_the_games_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"line|JSON|Expecting"):
        parse_line(line)
