import io

import pytest
from rich.console import Console

from gaming.autoscaler.v1 import autoscaler_pb2
from gaming.common.v1 import tier_pb2
from localsuite.game.feed import GameSample, StoryTurn, TierSample
from localsuite.observe.picture import SuitePicture
from localsuite.observe.recording import Recording
from localsuite.timing import Evening
from localsuite.view.live import PlainView
from localsuite.view.screen import draw

EVENING = Evening(peak_players=1000, duration_seconds=120.0, seed=1)


def a_full_picture() -> SuitePicture:
    now = [0.0]
    picture = SuitePicture(monotonic=lambda: now[0])
    picture.begin_evening()
    now[0] = 42.0
    picture.phase = "the surge"
    picture.autoscaler_tiers = {
        "gold": autoscaler_pb2.TierState(
            tier=tier_pb2.TIER_GOLD,
            desired=7,
            inputs=autoscaler_pb2.DecisionInputs(ready_servers=5, pending_servers=2),
        )
    }
    picture.status = autoscaler_pb2.GetStatusResponse(
        cost_usd_per_hour=12.5, cost_usd_per_player_month=9.4, budget_usd_per_player_month=8
    )
    picture.game = GameSample(
        42.0,
        970,
        {"gold": TierSample(sent=900, completed=880, cached=9, seconds_per_token_p95=0.0181)},
    )
    decision = autoscaler_pb2.Decision(
        tier=tier_pb2.TIER_GOLD,
        previous_desired=5,
        desired=7,
        summary="Gold 5 → 7: demand [in tokens] over capacity",
    )
    picture.decisions.append((40.0, decision))
    picture.remark("incident", "gold host killed: i-1 [no warning]")
    picture.story.append(StoryTurn(1, "knocks [twice]", ("a door",), 1, 0, ("l.md",), "Opens.", 1))
    return picture


def drawn(picture: SuitePicture, width: int, height: int) -> list[str]:
    written = io.StringIO()
    console = Console(file=written, width=width, height=height, color_system=None)
    console.print(draw(picture, Recording(), EVENING, {}, width=width, height=height))
    return written.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 40), (200, 60)])
def test_the_screen_fits_and_shows_what_matters(width: int, height: int) -> None:
    lines = drawn(a_full_picture(), width, height)
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    for expected in ("divided by 30", "0:42 / 2:00", "970", "18.1 ms", "5→7", "900 sent", "$9.40"):
        assert expected in text
    gold = next(line for line in lines if line.strip().startswith("gold") and "18.1" in line)
    assert gold.split()[1:4] == ["7", "5", "2"]


def test_brackets_in_what_services_say_are_shown_and_not_read_as_markup() -> None:
    text = "\n".join(drawn(a_full_picture(), 200, 60))
    for expected in ("demand [in tokens]", "[no warning]", "knocks [twice]"):
        assert expected in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_screen_can_be_drawn_before_anything_is_known(width: int, height: int) -> None:
    text = "\n".join(drawn(SuitePicture(), width, height))
    assert "waits for players" in text


def test_without_a_terminal_news_are_lines() -> None:
    written = io.StringIO()
    picture = a_full_picture()
    view = PlainView(Console(file=written, width=80), picture, Recording(), EVENING, {})
    view.decision(picture.decisions[0][1])
    view.remark(picture.remarks[0])
    view.story(picture.story[0])
    lines = written.getvalue().splitlines()
    assert lines[0] == "0:42 decision: gold 5 → 7: demand [in tokens] over capacity"
    assert lines[1] == "0:42 incident: gold host killed: i-1 [no warning]"
    assert "remembers: a door" in lines[2]
