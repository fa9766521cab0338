"""Runs the benchmarks one after another; each prints ratios against a rival or a limit.

make bench                        all of them
make bench ARGS="ai_router"       those whose path contains the text
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 900
# A script ends with it where this machine lacks what it measures, which it says.
EXIT_NOT_HERE = 2


def main() -> int:
    """Runs every matching script and returns how many failed."""
    wanted = sys.argv[1:]
    scripts = [
        script
        for script in sorted(BENCHMARKS.glob("*/*.py"))
        # Modules that several benchmarks share are no scripts.
        if '__name__ == "__main__"' in script.read_text(encoding="utf-8")
        and (not wanted or any(text in str(script.relative_to(BENCHMARKS)) for text in wanted))
    ]
    if not scripts:
        print(f"no benchmark matches {' '.join(wanted)}")
        return 1
    failed = []
    for position, script in enumerate(scripts, start=1):
        name = script.relative_to(BENCHMARKS)
        print(f"\n=== {name} ({position} of {len(scripts)})", flush=True)
        started = time.monotonic()
        result = subprocess.run([sys.executable, str(script)], check=False, timeout=TIMEOUT_SECONDS)
        print(f"    took {time.monotonic() - started:.0f} s", flush=True)
        if result.returncode == EXIT_NOT_HERE:
            print(f"not measured on this machine: {name}", flush=True)
        elif result.returncode:
            failed.append(name)
    for name in failed:
        print(f"FAILED: {name}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
