"""Settings from the environment: typed, all mistakes reported at once, secrets never shown.

A service describes its settings as a frozen dataclass whose fields come from `setting(...)`; a
field whose type is itself such a dataclass is loaded from the same environment.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["SettingRow", "SettingsError", "describe_settings", "load_settings", "setting"]

_METADATA_KEY = "servicekit.setting"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

S = TypeVar("S")


class SettingsError(Exception):
    """One or more settings are wrong; `problems` holds a line for each of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclasses.dataclass(frozen=True, slots=True)
class _Setting:
    variable: str
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...] | None
    secret: bool
    parse: Callable[[str], Any] | None


@dataclasses.dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of the settings table: variable, shown value, where it came from, meaning."""

    variable: str
    value: str
    source: str
    help: str


def setting(
    variable: str,
    *,
    help: str,  # noqa: A002  # the word every command line uses for it
    default: Any = MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] | None = None,
    secret: bool = False,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """Declares a dataclass field that is read from environment variable `variable`.

    Types understood: str, int, float, bool, Path, an Enum (by value or name), tuple[str, ...]
    (comma-separated) and `X | None`. An empty variable counts as not set: the default applies.
    `parse` overrides that; it raises ValueError with a message that says what is allowed. Both
    bounds are inclusive.
    """
    spec = _Setting(
        variable, help, minimum, maximum, tuple(choices) if choices else None, secret, parse
    )
    return dataclasses.field(default=default, metadata={_METADATA_KEY: spec})


def load_settings(settings_type: type[S], environ: Mapping[str, str]) -> S:
    """Returns the settings read from `environ`.

    Raises:
        SettingsError: with every mistake in it, each naming variable, value and what is allowed.
    """
    problems: list[str] = []
    loaded = _load(settings_type, environ, problems)
    if problems:
        # A group of settings that stands in two places is read, and wrong, twice.
        raise SettingsError(list(dict.fromkeys(problems)))
    return typing.cast("S", loaded)


def describe_settings(settings: Any, environ: Mapping[str, str]) -> list[SettingRow]:
    """Returns a row per setting, secrets redacted, in the order they are declared."""
    return list({row.variable: row for row in _rows(settings, environ)}.values())


def _rows(settings: Any, environ: Mapping[str, str]) -> list[SettingRow]:
    rows: list[SettingRow] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        spec = field.metadata.get(_METADATA_KEY)
        if spec is None:
            if dataclasses.is_dataclass(value):
                rows.extend(_rows(value, environ))
            continue
        source = "environment" if environ.get(spec.variable, "").strip() else "default"
        rows.append(SettingRow(spec.variable, _show(value, spec), source, spec.help))
    return rows


def _show(value: Any, spec: _Setting) -> str:
    if spec.secret:
        return "(not set)" if value in (None, "") else "(redacted)"
    if value is None or value == ():
        return "(not set)"
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value.value if isinstance(value, enum.Enum) else value)


def _load(settings_type: type[Any], environ: Mapping[str, str], problems: list[str]) -> Any:
    hints = typing.get_type_hints(settings_type)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings_type):
        spec: _Setting | None = field.metadata.get(_METADATA_KEY)
        hint = hints[field.name]
        if spec is None:
            if dataclasses.is_dataclass(hint):
                values[field.name] = _load(typing.cast("type[Any]", hint), environ, problems)
            continue
        try:
            values[field.name] = _read(field, spec, hint, environ)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        return None
    return settings_type(**values)


def _read(
    field: dataclasses.Field[Any], spec: _Setting, hint: Any, environ: Mapping[str, str]
) -> Any:
    parse = spec.parse or _parser(hint)
    text = environ.get(spec.variable, "").strip()
    if not text:
        if field.default is MISSING:
            raise ValueError(f"{spec.variable} is required: {spec.help}")
        return field.default
    shown = "(redacted)" if spec.secret else repr(text)
    try:
        value = parse(text)
    except ValueError as error:
        reason = str(error).replace(text, "(redacted)") if spec.secret else str(error)
        raise ValueError(f"{spec.variable}={shown} is wrong: {reason}") from None
    allowed = _violated(value, spec)
    if allowed:
        raise ValueError(f"{spec.variable}={shown} is wrong: {allowed}")
    return value


def _violated(value: Any, spec: _Setting) -> str:
    if spec.choices is not None:
        given = value if isinstance(value, tuple) else (value,)
        if any(str(item) not in spec.choices for item in given):
            return f"allowed are {', '.join(spec.choices)}"
    low, high = spec.minimum, spec.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        if low is not None and high is not None:
            return f"must be from {low:g} to {high:g}"
        return f"must be at least {low:g}" if low is not None else f"must be at most {high:g}"
    return ""


def _parser(hint: Any) -> Callable[[str], Any]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"no parser for settings of type {hint!r}; pass parse=")
        return _parser(inner[0])
    if origin is tuple:
        return lambda text: tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return lambda text: _parse_enum(hint, text)
    if hint is bool:
        return _parse_bool
    if hint is int:
        return lambda text: _parse_number(int, text, "a whole number")
    if hint is float:
        return lambda text: _parse_number(float, text, "a number")
    if hint is Path:
        return Path
    if hint is str:
        return str
    raise TypeError(f"no parser for settings of type {hint!r}; pass parse=")


def _parse_number(kind: type[int | float], text: str, description: str) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"must be {description}") from None
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124  # the test for NaN
        raise ValueError(f"must be {description}")
    return value


def _parse_bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("must be true or false")


def _parse_enum(hint: type[enum.Enum], text: str) -> enum.Enum:
    for member in hint:
        if text.lower() in (str(member.value).lower(), member.name.lower()):
            return member
    raise ValueError("allowed are " + ", ".join(str(member.value) for member in hint))
