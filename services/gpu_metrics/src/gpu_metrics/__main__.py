"""Starts the agent of a GPU host, or the collector: `python -m gpu_metrics agent|collector`."""

import importlib
import sys

_USAGE = """usage: python -m gpu_metrics agent|collector

agent      reads this host's GPUs and model servers and reports to the collectors
collector  keeps the view of the fleet and shows it to everybody who watches

Settings come from the environment and are listed at start."""

# Loaded by name, so that an agent does not carry what only a collector needs, and vice versa.
_ROLES = {"agent": "gpu_metrics.agent_process", "collector": "gpu_metrics.collector_process"}


def main(arguments: list[str]) -> int:
    """Run the role named by the only argument and return the exit code."""
    if len(arguments) == 1 and arguments[0] in _ROLES:
        return int(importlib.import_module(_ROLES[arguments[0]]).main())
    helped = arguments in (["--help"], ["-h"])
    print(_USAGE, file=sys.stdout if helped else sys.stderr)
    return 0 if helped else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
