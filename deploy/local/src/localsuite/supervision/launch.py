"""Becomes another program that cannot outlive its parent.

    python launch.py PARENT_PID PROGRAM [ARGUMENT ...]

Asks the kernel to kill this process when the parent ends, however the parent ends, and then
replaces itself by the program; the request survives the replacement (Linux, prctl(2)
PR_SET_PDEATHSIG). On other systems it replaces itself only, and the parent's own clean-up is all
there is. Run by path and isolated, so that it costs a few milliseconds and imports nothing of the
suite.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Replaces this process by the program named in `arguments`."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  # only where it is needed; keeps the start short

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit("the kernel refused to tie this process to its parent")
    if os.getppid() != parent:
        sys.exit("the parent ended before the program began")
    os.execv(program[0], program)  # noqa: S606  # replacing ourselves by our own program is the job


if __name__ == "__main__":
    main(sys.argv[1:])
