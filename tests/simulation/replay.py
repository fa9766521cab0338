"""Replay one seed of the simulation and print its history: `replay.py SEED [--verbose]`.

Prints the seed's faults, the run's history (with --verbose also every log line of the services)
and what the invariants found. Exits with 1 when they found something.
"""

from __future__ import annotations

import argparse
import sys

from fault_plan import plan_for
from seeded_run import simulate


def main() -> int:
    """Run the seed given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seed", type=int)
    parser.add_argument("--verbose", action="store_true", help="with the services' log lines")
    parser.add_argument("--last", type=int, default=0, help="only so many lines of history")
    arguments = parser.parse_args()
    plan = plan_for(arguments.seed)
    report = simulate(arguments.seed, plan=plan, verbose=arguments.verbose)
    write = sys.stdout.write
    write(f"seed {arguments.seed}: {', '.join(plan.kinds) or 'no faults'}\n{plan.weather}\n")
    for name, seconds in sorted(plan.wall_offsets_seconds.items()):
        write(f"clock of {name}: {seconds:+.1f} s\n")
    for line in report.trace[-arguments.last :]:
        write(f"{line}\n")
    write(f"{report.counts}\nhash {report.run_hash}\n")
    for finding in report.findings:
        write(f"FOUND {finding}\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
