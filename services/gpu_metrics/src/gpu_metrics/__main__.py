"""Starts the agent of a GPU host, or the collector: `python -m gpu_metrics agent|collector`.

`record` and `replay` keep what a GPU driver answers, and play it again.
"""

import importlib
import sys

_USAGE = """usage: python -m gpu_metrics agent|collector|record|replay

agent      reads this host's GPUs and model servers and reports to the collectors
collector  keeps the view of the fleet and shows it to everybody who watches
record     keeps what this machine's GPU driver answers in a file (record --help)
replay     plays such a file to collectors or to the stand-in driver (replay --help)

Settings come from the environment and are listed at start."""

# Loaded by name, so that an agent does not carry what only a collector needs, and vice versa.
_ROLES = {"agent": "gpu_metrics.agent_process", "collector": "gpu_metrics.collector_process"}


def main(arguments: list[str]) -> int:
    """Run the role named by the only argument and return the exit code."""
    if len(arguments) == 1 and arguments[0] in _ROLES:
        return int(importlib.import_module(_ROLES[arguments[0]]).main())
    if arguments and arguments[0] in ("record", "replay"):
        commands = importlib.import_module("gpu_metrics.driver_recording_commands")
        return int(commands.main(arguments))
    helped = arguments in (["--help"], ["-h"])
    print(_USAGE, file=sys.stdout if helped else sys.stderr)
    return 0 if helped else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
