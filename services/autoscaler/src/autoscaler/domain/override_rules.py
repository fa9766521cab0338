"""What an operator's hold must look like."""

from autoscaler.domain.overrides import Override, OverrideKind
from servicekit.errors import FieldViolation, InvalidRequest

__all__ = ["MAXIMUM_OVERRIDE_SECONDS", "InvalidOverride", "check_override"]

MAXIMUM_OVERRIDE_SECONDS = 30 * 24 * 3600.0
"""Longer than a month nobody remembers why."""


class InvalidOverride(InvalidRequest):
    """The hold contradicts itself or never ends."""

    reason = "INVALID_OVERRIDE"


def check_override(override: Override, now: float) -> None:
    """Raise InvalidOverride, naming every wrong field, unless the hold makes sense."""
    wrong = [*_wrong_sizes(override), *_wrong_expiry(override, now)]
    if wrong:
        raise InvalidOverride(
            "The override is not valid; the details name each field that is wrong.",
            field_violations=wrong,
        )


def _wrong_sizes(override: Override) -> list[FieldViolation]:
    has_bounds = override.minimum is not None or override.maximum is not None
    if override.kind is OverrideKind.PIN and (override.desired is None or has_bounds):
        return [FieldViolation("override.desired", "PIN needs `desired`, and no bounds")]
    if override.kind is OverrideKind.FREEZE and (override.desired is not None or has_bounds):
        return [FieldViolation("override.kind", "FREEZE takes no sizes")]
    if override.kind is OverrideKind.BOUNDS:
        if not has_bounds or override.desired is not None:
            return [
                FieldViolation(
                    "override.minimum", "BOUNDS needs `minimum` or `maximum`, and no `desired`"
                )
            ]
        if (
            override.minimum is not None
            and override.maximum is not None
            and override.minimum > override.maximum
        ):
            return [FieldViolation("override.minimum", "must not exceed `maximum`")]
    return []


def _wrong_expiry(override: Override, now: float) -> list[FieldViolation]:
    if override.expire_time <= now:
        return [FieldViolation("override.expire_time", "must be in the future")]
    if override.expire_time > now + MAXIMUM_OVERRIDE_SECONDS:
        return [FieldViolation("override.expire_time", "must be at most 30 days ahead")]
    return []
