"""Settings: every type, every mistake at once, no secret shown."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.channels import ChannelSettings
from servicekit.server import ServerSettings
from servicekit.settings import SettingsError, describe_settings, load_settings, setting
from servicekit.telemetry import TelemetrySettings


class Mode(enum.Enum):
    DRY_RUN = "dry-run"
    LIVE = "live"


def _even(text: str) -> int:
    if int(text) % 2:
        raise ValueError(f"{text} is odd; must be even")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    password: str = setting("X_PASSWORD", help="the password", secret=True)
    path: Path = setting("X_PATH", help="a path", default=Path("/srv"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    inner: Inner
    again: Inner
    name: str = setting("X_NAME", help="a name")
    count: int = setting("X_COUNT", help="a count", default=3, minimum=1, maximum=9)
    ratio: float = setting("X_RATIO", help="a ratio", default=0.5, minimum=0)
    ceiling: float = setting("X_CEILING", help="a ceiling", default=0.5, maximum=1)
    enabled: bool = setting("X_ENABLED", help="a switch", default=False)
    mode: Mode = setting("X_MODE", help="a mode", default=Mode.LIVE)
    hosts: tuple[str, ...] = setting("X_HOSTS", help="hosts", default=())
    level: str = setting("X_LEVEL", help="a level", default="low", choices=("low", "high"))
    limit: float | None = setting("X_LIMIT", help="a limit", default=None)
    even: int = setting("X_EVEN", help="an even number", default=2, parse=_even)
    pin: int = setting("X_PIN", help="a secret even number", default=2, parse=_even, secret=True)


REQUIRED = {"X_NAME": "n", "X_PASSWORD": "p"}


def load(**environ: str) -> Everything:
    return load_settings(Everything, REQUIRED | environ)


def problems_of(environ: dict[str, str], kind: type[Any] = Everything) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(kind, environ)
    return caught.value.problems


def test_defaults_apply_to_what_is_not_set() -> None:
    loaded = load()
    assert (loaded.count, loaded.ratio, loaded.enabled, loaded.mode) == (3, 0.5, False, Mode.LIVE)
    assert (loaded.hosts, loaded.limit, loaded.inner.path) == ((), None, Path("/srv"))


def test_every_type_is_read() -> None:
    loaded = load(
        X_COUNT=" 7 ",
        X_RATIO="1e2",
        X_ENABLED="Yes",
        X_MODE="dry-run",
        X_HOSTS="a, b,,c ",
        X_LIMIT="2.5",
        X_PATH="/tmp/x",  # noqa: S108  # not opened
        X_EVEN="8",
        X_LEVEL="high",
    )
    assert (loaded.count, loaded.ratio, loaded.enabled) == (7, 100.0, True)
    assert (loaded.mode, loaded.hosts, loaded.limit) == (Mode.DRY_RUN, ("a", "b", "c"), 2.5)
    assert (loaded.inner.path, loaded.even, loaded.level) == (Path("/tmp/x"), 8, "high")  # noqa: S108  # as above


@pytest.mark.parametrize("text", ["DRY_RUN", "dry_run", "Dry-Run"])
def test_an_enum_is_read_by_value_or_name_in_any_case(text: str) -> None:
    assert load(X_MODE=text).mode is Mode.DRY_RUN


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("ON", True), ("0", False), ("no", False)]
)
def test_switches_are_read_as_people_write_them(text: str, value: bool) -> None:
    assert load(X_ENABLED=text).enabled is value


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(X_COUNT="  ", X_LIMIT="").count == 3
    assert problems_of(REQUIRED | {"X_NAME": ""}) == ("X_NAME is required: a name",)


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("X_COUNT", "0", "must be from 1 to 9"),
        ("X_COUNT", "10", "must be from 1 to 9"),
        ("X_COUNT", "3.5", "must be a whole number"),
        ("X_RATIO", "-1", "must be at least 0"),
        ("X_RATIO", "nan", "must be a number"),
        ("X_RATIO", "inf", "must be a number"),
        ("X_CEILING", "2", "must be at most 1"),
        ("X_ENABLED", "perhaps", "must be true or false"),
        ("X_MODE", "wet", "allowed are dry-run, live"),
        ("X_LEVEL", "middling", "allowed are low, high"),
        ("X_EVEN", "3", "3 is odd; must be even"),
    ],
)
def test_a_mistake_names_variable_value_and_what_is_allowed(
    variable: str, value: str, allowed: str
) -> None:
    assert problems_of(REQUIRED | {variable: value}) == (
        f"{variable}='{value}' is wrong: {allowed}",
    )


@pytest.mark.parametrize("value", ["1", "9"])
def test_bounds_are_inclusive(value: str) -> None:
    assert load(X_COUNT=value).count == int(value)


def test_all_mistakes_are_reported_at_once_also_nested_ones_and_each_once() -> None:
    problems = problems_of({"X_COUNT": "x", "X_MODE": "y", "X_RATIO": "-1"})
    assert [line.split("=")[0].split()[0] for line in problems] == [
        "X_PASSWORD",
        "X_NAME",
        "X_COUNT",
        "X_RATIO",
        "X_MODE",
    ]


def test_a_secret_appears_in_no_message_and_no_table() -> None:
    problems = problems_of(REQUIRED | {"X_PIN": "987654321"})
    assert problems == ("X_PIN=(redacted) is wrong: (redacted) is odd; must be even",)
    environ = REQUIRED | {"X_PASSWORD": "hunter2", "X_PIN": "4422"}
    table = repr(describe_settings(load_settings(Everything, environ), environ))
    assert "hunter2" not in table
    assert "4422" not in table


def test_the_table_has_each_variable_once_with_its_source() -> None:
    environ = REQUIRED | {"X_COUNT": "4", "X_HOSTS": "a,b", "X_LEVEL": " "}
    rows = {row.variable: row for row in describe_settings(load(**environ), environ)}
    assert len(rows) == len(describe_settings(load(**environ), environ))
    assert (rows["X_COUNT"].value, rows["X_COUNT"].source) == ("4", "environment")
    assert (rows["X_RATIO"].value, rows["X_RATIO"].source) == ("0.5", "default")
    assert (rows["X_LEVEL"].value, rows["X_LEVEL"].source) == ("low", "default")
    assert (rows["X_HOSTS"].value, rows["X_LIMIT"].value) == ("a,b", "(not set)")
    assert (rows["X_MODE"].value, rows["X_PASSWORD"].value) == ("live", "(redacted)")


def test_a_type_nobody_can_parse_is_a_programming_error() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: int | str | None = setting("X_ODD", help="odd", default=None)

    with pytest.raises(TypeError, match="no parser"):
        load_settings(Odd, {})


@given(st.dictionaries(st.sampled_from(["X_COUNT", "X_RATIO", "X_MODE", "X_HOSTS"]), st.text()))
def test_no_text_does_anything_but_load_or_be_reported(environ: dict[str, str]) -> None:
    try:
        loaded = load(**environ)
    except SettingsError:
        return
    assert 1 <= loaded.count <= 9
    assert loaded.ratio >= 0


@pytest.mark.parametrize("kind", [ServerSettings, ChannelSettings, TelemetrySettings])
def test_the_suites_own_settings_have_defaults_for_everything(kind: type[Any]) -> None:
    loaded = load_settings(kind, {})
    assert all(row.help for row in describe_settings(loaded, {}))


class TestServerSettings:
    def problems(self, **environ: str) -> list[str]:
        return load_settings(ServerSettings, environ).problems()

    def test_loopback_needs_no_certificate(self) -> None:
        assert self.problems(GAMEKEEPER_LISTEN_ADDRESS="[::1]:0") == []

    def test_other_addresses_need_one(self) -> None:
        (problem,) = self.problems(GAMEKEEPER_LISTEN_ADDRESS="0.0.0.0:50062")
        assert problem.startswith("GAMEKEEPER_LISTEN_ADDRESS='0.0.0.0:50062' is wrong")

    def test_the_admin_port_is_for_this_machine_only(self) -> None:
        (problem,) = self.problems(GAMEKEEPER_ADMIN_ADDRESS="10.0.0.1:9")
        assert "must be on loopback" in problem

    def test_a_part_of_the_certificate_files_names_the_missing_ones(self, tmp_path: Path) -> None:
        problems = self.problems(GAMEKEEPER_TLS_KEY_FILE=str(tmp_path / "none.key"))
        assert [line.split("=")[0].split()[0] for line in problems] == [
            "GAMEKEEPER_TLS_CERTIFICATE_FILE",
            "GAMEKEEPER_TLS_KEY_FILE",
            "GAMEKEEPER_TLS_CA_FILE",
        ]
        assert "there is no such file" in problems[1]
