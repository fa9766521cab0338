from pathlib import Path

import pytest

from localsuite.options import parse_options, repository_root
from localsuite.plan import SHORTENED_SETTINGS
from localsuite.timing import EVENING_SECONDS, Evening


def test_the_defaults_are_an_evening_of_a_thousand_players_in_two_minutes() -> None:
    options = parse_options([])
    assert (options.players, options.duration_seconds, options.once) == (1000, 120.0, False)
    assert options.data_directory == repository_root() / ".var"
    assert any(options.lore_directory.glob("*.md"))


def test_a_time_factor_is_another_way_to_give_the_length() -> None:
    assert parse_options(["--compression", "60"]).duration_seconds == 60.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--players", "many"], "'many' is not a whole number"),
        (["--players", "-1"], "not within 0..20000"),
        (["--duration-seconds", "3"], "not within 20..3600"),
        (["--lore", "/nowhere/at/all"], "is not a directory"),
        (["--port-base", "99999"], "not within"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_options(arguments)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_lore_directory_without_markdown_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--lore", str(tmp_path)])
    assert "no Markdown" in capsys.readouterr().err


def test_one_factor_divides_everything_that_is_minutes_in_production() -> None:
    evening = Evening(peak_players=1000, duration_seconds=120.0, seed=1)
    assert evening.time_factor == 30
    assert evening.shortened(EVENING_SECONDS) == 120.0
    assert evening.shortened(120.0) == 4.0
    assert [incident.kind for incident in evening.incidents()] == [
        "server_killed",
        "spot_interruption",
    ]


def test_the_evening_has_a_name_for_every_moment() -> None:
    evening = Evening(peak_players=1, duration_seconds=100.0, seed=1)
    phases = [evening.phase(float(second)) for second in range(120)]
    assert all(phases)
    assert phases.index("the surge") < phases.index("players leave")


def test_shortened_settings_are_settings_the_services_know() -> None:
    from autoscaler.config import AutoscalerSettings  # noqa: PLC0415  # slow, for this test only
    from servicekit.settings import load_settings  # noqa: PLC0415  # as above

    environ = {name: str(value) for name, value in SHORTENED_SETTINGS["autoscaler"].items()}
    environ["AUTOSCALER_DATABASE_URL"] = "postgresql://nobody:x@127.0.0.1:1/none"
    from servicekit.settings import describe_settings  # noqa: PLC0415  # as above

    settings = load_settings(AutoscalerSettings, environ)
    known = {row.variable: row for row in describe_settings(settings, environ)}
    assert set(SHORTENED_SETTINGS["autoscaler"]) <= set(known)
