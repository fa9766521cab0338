"""Starts the agent of a GPU host, or the collector: `python -m gpu_metrics agent|collector`.

`record` and `replay` keep what a GPU driver answers, and play it again.
"""

import importlib
import sys

from servicekit.process_start import begin

_USAGE = """usage: python -m gpu_metrics agent|collector|record|replay

agent      reads this host's GPUs and model servers and reports to the collectors (agent --help)
collector  keeps the view of the fleet and shows it to everybody who watches
record     keeps what this machine's GPU driver answers in a file (record --help)
replay     plays such a file to collectors or to the stand-in driver (replay --help)

Settings come from the environment and are listed at start."""

_AGENT_USAGE = """usage: python -m gpu_metrics agent

Reads this host's GPUs and model servers once a second and reports to the collectors.
One agent runs on each GPU host. It is told by the environment, above all:

GPU_METRICS_COLLECTORS        host:port of every collector, separated by commas
GPU_METRICS_MODEL_SERVERS     vLLM servers of this host, tier=url, separated by commas
GPU_METRICS_HOST_ID           a name unique in the fleet; on EC2 the instance id by itself
GPU_METRICS_STATE_DIRECTORY   where events are kept until collectors have them
GPU_METRICS_DCGM_URL          dcgm-exporter's metrics page, to fill in what NVML does not tell

All settings are listed at start. Exit status: 0 after SIGTERM, 1 after a failure, 2 when
settings are wrong, 3 when the GPU driver was replaced and a new process must read it."""

_HELP = (["--help"], ["-h"])

# Loaded by name, so that an agent does not carry what only a collector needs, and vice versa.
_ROLES = {"agent": "gpu_metrics.agent_process", "collector": "gpu_metrics.collector_process"}


def main(arguments: list[str]) -> int:
    """Run the role named by the only argument and return the exit code."""
    if len(arguments) == 1 and arguments[0] in _ROLES:
        begin()
        return int(importlib.import_module(_ROLES[arguments[0]]).main())
    if arguments and arguments[0] in ("record", "replay"):
        commands = importlib.import_module("gpu_metrics.driver_recording_commands")
        return int(commands.main(arguments))
    if arguments[:1] == ["agent"] and arguments[1:] in _HELP:
        print(_AGENT_USAGE)
        return 0
    helped = arguments in _HELP
    print(_USAGE, file=sys.stdout if helped else sys.stderr)
    return 0 if helped else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
