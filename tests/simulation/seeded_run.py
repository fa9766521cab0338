"""Runs seeds: one here, or many on all cores."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import structlog
from fault_plan import (
    FaultPlan,
    plan_for,
)
from invariants import ALL_INVARIANTS, Finding, Invariant
from simulated_suite import RunReport, SimulatedSuite
from virtual_loop import run_virtual

__all__ = ["simulate", "simulate_all"]


def simulate(
    seed: int,
    *,
    invariants: Sequence[type[Invariant]] = ALL_INVARIANTS,
    plan: FaultPlan | None = None,
    verbose: bool = False,
    stops_at_findings: bool = False,
) -> RunReport:
    """Run a seed, to its end or the first findings, and return what came of it."""

    async def main() -> RunReport:
        suite = SimulatedSuite(seed, plan or plan_for(seed), invariants)
        with _logs_heard_by(suite, verbose=verbose):
            await suite.run(stops_at_findings=stops_at_findings)
        return suite.report(seed)

    with _cheaper():
        return run_virtual(main())


def simulate_all(seeds: Sequence[int]) -> dict[int, tuple[Finding, ...]]:
    """Run seeds on all cores, a process each, and return what each one's invariants found."""
    # Fresh interpreters: a run changes the process's logging and garbage collection.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return dict(zip(seeds, pool.map(_findings_of, seeds), strict=True))


def _findings_of(seed: int) -> tuple[Finding, ...]:
    return simulate(seed).findings


@contextmanager
def _cheaper() -> Iterator[None]:
    """Leave out a third of a run's cost that decides nothing in it.

    A decision's counterfactuals are told to operators only, and garbage of a run may wait for its
    end.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with patch("autoscaler.control_loop.counterfactuals", lambda *_: ()):
            yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _logs_heard_by(suite: SimulatedSuite, *, verbose: bool) -> Iterator[None]:
    """Turn logged errors into findings, and with `verbose` every log line into a trace line."""

    def hear(_: Any, method: str, event: MutableMapping[str, Any]) -> str:
        name = event.pop("event")
        error = event.pop("exc_info", None)
        words = " ".join(f"{key}={value}" for key, value in sorted(event.items()))
        if method in ("error", "exception"):
            suite.logged_error(name, f"{words} {sys.exc_info()[1]!r}" if error else words)
        else:
            suite.trace(f"[{method}]", name, words)
        raise structlog.DropEvent

    before = structlog.get_config()
    level = 10 if verbose else 40
    structlog.configure(
        processors=[hear],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
