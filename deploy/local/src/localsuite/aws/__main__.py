"""`python -m localsuite.aws`: the local AWS as a process of its own."""

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from localsuite.aws.tiers import DEFAULT_CLUSTER, DEFAULT_TIERS

_NOTICE = (
    "This is a simulation of AWS on 127.0.0.1. It checks no credentials, launches nothing and "
    "costs nothing."
)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m localsuite.aws",
        description="A local AWS: Auto Scaling, EC2 and ECS capacity from a simulation in time, "
        "everything else from moto. Prints one JSON line with its endpoint when ready.",
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0: a free one")
    parser.add_argument("--region", default="us-east-1", help="the region's name")
    parser.add_argument(
        "--time-compression",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="divides everything that takes minutes in production (launch, Spot notice, ...)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    parser.add_argument("--cluster", default=DEFAULT_CLUSTER, help="ECS cluster of all hosts")
    parser.add_argument(
        "--seed-account",
        action="store_true",
        help="create the tiers' Auto Scaling groups and the event bus before being ready",
    )
    parser.add_argument(
        "--state-file",
        type=Path,
        help="also write the ready line here; removed when the process ends",
    )
    arguments = parser.parse_args(argv)
    if not arguments.time_compression > 0:
        parser.error("--time-compression must be positive")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit status."""
    arguments = _arguments(argv)
    print(_NOTICE, file=sys.stderr, flush=True)
    return _serve(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    # Loading moto takes seconds: not before the options are known to be right.
    from fleetsim.cloud_state import CloudSettings  # noqa: PLC0415 - as above
    from localsuite.aws.account import seed_account  # noqa: PLC0415 - as above
    from localsuite.aws.event_bus import seed_event_bus  # noqa: PLC0415 - as above
    from localsuite.aws.region import Region  # noqa: PLC0415 - as above
    from localsuite.aws.server import LocalAwsServer  # noqa: PLC0415 - as above

    zones = tuple(f"{arguments.region}{letter}" for letter in "abc")
    region = Region(
        name=arguments.region,
        seed=arguments.seed,
        time_compression=arguments.time_compression,
        settings=CloudSettings(zones=zones),
    )
    # A handler that set an Event would stop for good when its signal comes while the same thread
    # holds that Event's lock. A byte in a socket waits for whoever comes to read it, and comes
    # whichever thread the signal is delivered to.
    told, teller = socket.socketpair()
    teller.setblocking(False)
    signal.set_wakeup_fd(teller.fileno())
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda *_: None)
    server = LocalAwsServer(region, port=arguments.port, cluster=arguments.cluster)
    try:
        server.front.control.ready.clear()
        server.start()
    except OSError as error:
        print(f"{error}; choose another with --port, or 0 for a free one", file=sys.stderr)
        return 1
    try:
        if arguments.seed_account:
            seed_account(
                server.endpoint,
                DEFAULT_TIERS,
                region_name=arguments.region,
                zones=zones,
                cluster=arguments.cluster,
            )
            seed_event_bus(server.endpoint, region_name=arguments.region)
        server.front.control.ready.set()
        ready = json.dumps(
            {
                "event": "ready",
                "endpoint": server.endpoint,
                "region": region.name,
                "simulation": True,
                "time_compression": arguments.time_compression,
                "seed": arguments.seed,
                "pid": os.getpid(),
            }
        )
        if arguments.state_file is not None:
            arguments.state_file.write_text(ready + "\n")
        print(ready, flush=True)
        told.recv(1)
    finally:
        server.stop()
        if arguments.state_file is not None:
            arguments.state_file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is said and closed. Taking moto's objects apart would cost most of a second of CPU, which
    # on a busy machine is longer than who asked for the end is ready to wait.
    os._exit(status)
