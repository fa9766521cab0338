"""What a benchmark claims, printed with whether it holds."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Limit", "at_least", "at_most", "exit_status"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A claim in words, with what was measured and what was wanted in it."""

    told: str
    kept: bool


def at_most(what: str, measured: float | None, limit: float, form: str) -> Limit:
    """Claim that a figure is no greater than its limit; one that was never measured is missed."""
    if measured is None:
        return Limit(f"{what}: never, wanted at most {limit:{form}}", kept=False)
    return Limit(f"{what}: {measured:{form}}, wanted at most {limit:{form}}", measured <= limit)


def at_least(what: str, measured: float | None, limit: float, form: str) -> Limit:
    """Claim that a figure is no less than its limit; one that was never measured is missed."""
    if measured is None:
        return Limit(f"{what}: never, wanted at least {limit:{form}}", kept=False)
    return Limit(f"{what}: {measured:{form}}, wanted at least {limit:{form}}", measured >= limit)


def exit_status(limits: Sequence[Limit]) -> int:
    """Print each limit, and return 0 when all are kept, else 1; no limits are no success."""
    for limit in limits:
        print(f"{'kept  ' if limit.kept else 'MISSED'} {limit.told}")
    return 0 if limits and all(limit.kept for limit in limits) else 1
