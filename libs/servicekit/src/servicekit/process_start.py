"""What a service's process does before it imports anything else: to be up sooner, and smaller."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

__all__ = ["begin"]

_ARENA_MAX = -8
"""M_ARENA_MAX of glibc's malloc.h."""


def begin() -> None:
    """Makes the imports that follow cheaper, until `run_service` takes over; call it once, first.

    The garbage collector rests: what imports create stays, and looking at it again and again takes
    a twentieth of their time. structlog is loaded without rich, which it would load for coloured
    tracebacks that no service prints: a tenth of their time.

    All threads take memory from one place. By default glibc gives each thread of gRPC's core one of
    its own, and what a flood of calls leaves free in one serves no other: 5,000 unfinished calls
    cost 4 to 12 MB then, and 3 to 8 with one place, which costs no CPU time that could be measured
    (libraries that have no such setting are left as they are).
    """
    gc.disable()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    # None is Python's own mark of a module that cannot be imported.
    sys.modules["rich"] = None  # type: ignore[assignment]  # see above; the stubs do not know
    try:
        import structlog  # noqa: F401, PLC0415  # loaded here so that it finds no rich
    finally:
        del sys.modules["rich"]
