"""Players, arrivals and token lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.arrivals import ArrivalProcess, TierMix
from fleetsim.players import DayCurve, EveningCurve, Surge, TraceCurve
from fleetsim.token_lengths import AZURE_CODE, AZURE_CONVERSATION, GAME_DIALOGUE

EVENING = EveningCurve(1000, 3600)
STEADY = TraceCurve(np.array([0.0, 3600.0]), np.array([1000.0, 1000.0]))


def test_an_evening_rises_from_nothing_to_its_peak_and_back() -> None:
    players = EVENING.players_at(np.linspace(0, 3600, 361))
    assert players[0] == pytest.approx(0)
    assert players[180] == pytest.approx(1000)
    assert players[-1] == pytest.approx(0, abs=1e-9)
    assert np.all(np.diff(players[:181]) >= 0)
    assert float(EVENING.players_at(3601)) == 0.0


def test_a_surge_comes_on_top_for_its_time() -> None:
    surge = EveningCurve(1000, 3600, Surge(2000, 400, 0.5))
    times = np.array([1999.0, 2200.0, 2401.0])
    extra = surge.players_at(times) - EVENING.players_at(times)
    assert extra.tolist() == pytest.approx([0, 500, 0])


def test_a_day_peaks_in_the_evening_and_keeps_its_trough() -> None:
    day = DayCurve(1000, trough_ratio=0.25)
    hours = np.arange(0, 24, 0.25)
    players = day.players_at(hours * 3600)
    assert hours[int(players.argmax())] == 20.5
    assert players.max() == pytest.approx(1000)
    assert players.min() == pytest.approx(250)
    assert 4 <= hours[int(players.argmin())] <= 12


def test_a_trace_is_linear_between_its_points_and_refuses_nonsense() -> None:
    trace = TraceCurve(np.array([0.0, 100.0]), np.array([10.0, 30.0]))
    assert trace.players_at(50).tolist() == 20.0
    assert trace.duration_seconds == 100.0
    with pytest.raises(ValueError, match="ascend"):
        TraceCurve(np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="equally long"):
        TraceCurve(np.array([0.0]), np.array([]))


def test_requests_per_player_give_the_expected_number_of_requests() -> None:
    batch = ArrivalProcess(STEADY).draw(np.random.default_rng(1), 0, 3600)
    expected = 1000 * 0.05 * 3600
    assert len(batch.times) == pytest.approx(expected, abs=5 * expected**0.5)
    assert np.all(np.diff(batch.times) >= 0)
    assert batch.times[0] >= 0
    assert batch.times[-1] < 3600


@pytest.mark.parametrize("dispersion", [1.0, 4.0])
def test_counts_are_as_dispersed_as_asked_and_keep_their_mean(dispersion: float) -> None:
    process = ArrivalProcess(STEADY, index_of_dispersion=dispersion)
    batch = process.draw(np.random.default_rng(2), 0, 3600)
    counts = np.histogram(batch.times, bins=360, range=(0, 3600))[0]
    assert counts.mean() == pytest.approx(500, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.3)


def test_arrivals_follow_a_steep_curve_inside_a_window() -> None:
    rising = TraceCurve(np.array([0.0, 600.0]), np.array([0.0, 20_000.0]))
    process = ArrivalProcess(rising, window_seconds=600.0)
    batch = process.draw(np.random.default_rng(3), 0, 600)
    assert np.median(batch.times) == pytest.approx(600 / 2**0.5, rel=0.01)


def test_tiers_are_wanted_in_the_mix_given() -> None:
    batch = ArrivalProcess(STEADY).draw(np.random.default_rng(4), 0, 3600)
    shares = np.bincount(batch.tier_index, minlength=3) / len(batch.tier_index)
    assert shares.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.01)
    with pytest.raises(ValueError, match="share"):
        TierMix(("gold",), (0.0,)).probabilities()


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 3000), st.floats(0.1, 600), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_requests(start: float, length: float, seed: int) -> None:
    def draw() -> tuple[bytes, ...]:
        batch = ArrivalProcess(EVENING).draw(np.random.default_rng(seed), start, start + length)
        return tuple(
            column.tobytes()
            for column in (batch.times, batch.tier_index, batch.prompt_tokens, batch.output_tokens)
        )

    assert draw() == draw()


def test_lengths_have_the_documented_means() -> None:
    rng = np.random.default_rng(5)
    means = {
        name: (lengths.prompt.draw(rng, 50_000).mean(), lengths.output.draw(rng, 50_000).mean())
        for name, lengths in (
            ("game", GAME_DIALOGUE),
            ("conversation", AZURE_CONVERSATION),
            ("code", AZURE_CODE),
        )
    }
    assert means["game"] == pytest.approx((340, 79), rel=0.03)
    # The trace's own means are 1,155 / 211 and 2,048 / 28.
    assert means["conversation"] == pytest.approx((1155, 211), rel=0.08)
    assert means["code"] == pytest.approx((2048, 28), rel=0.12)
