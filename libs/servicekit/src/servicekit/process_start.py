"""What a service's process does before it imports anything else, so that it is up sooner."""

from __future__ import annotations

import gc
import sys

__all__ = ["begin"]


def begin() -> None:
    """Makes the imports that follow cheaper, until `run_service` takes over; call it once, first.

    The garbage collector rests: what imports create stays, and looking at it again and again takes
    a twentieth of their time. structlog is loaded without rich, which it would load for coloured
    tracebacks that no service prints: a tenth of their time.
    """
    gc.disable()
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    # None is Python's own mark of a module that cannot be imported.
    sys.modules["rich"] = None  # type: ignore[assignment]  # see above; the stubs do not know
    try:
        import structlog  # noqa: F401, PLC0415  # loaded here so that it finds no rich
    finally:
        del sys.modules["rich"]
