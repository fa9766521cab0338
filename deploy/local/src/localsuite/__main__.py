"""`python -m localsuite`: the whole suite on this machine; the same as `gamekeeper up`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from localsuite.data_directory import (
    DataDirectory,
    DataDirectoryInUseError,
    DataDirectoryUnusableError,
)
from localsuite.options import parse_options
from localsuite.ports import PortInUseError, choose_ports

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite as told by the command line and returns the exit code."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    # Processes are started by fork and exec; gRPC's own fork handlers would only complain.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    console = Console(highlight=False)
    try:
        # What takes a moment to import comes after the options, so that --help is quick.
        from localsuite.suite import Suite  # noqa: PLC0415  # see above

        with DataDirectory(options.data_directory) as data:
            ports = choose_ports(options.port_base)
            return asyncio.run(Suite(options, data, ports, console).run())
    except KeyboardInterrupt:
        # Before the run listens to signals itself; nothing was started yet.
        return EXIT_INTERRUPTED
    except (DataDirectoryInUseError, DataDirectoryUnusableError, PortInUseError) as error:
        Console(stderr=True).print(f"[red]{error}[/red]", soft_wrap=True)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
