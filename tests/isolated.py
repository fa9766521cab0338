"""Runs each service's unit tests with that service's own dependencies and nothing else's.

The development environment holds everything, so it hides a dependency a service forgot to declare.
Here every service gets what its image gets, the hashed requirements of its own file and wheels
built from the sources, and pytest beside them.

    .venv/bin/python tests/isolated.py [SERVICE ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = str(ROOT / ".tool" / "bin" / "uv")
SERVICES = ("gpu_metrics", "autoscaler", "ai_router", "knowledge_base")
TEST_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "pyyaml")


def run(*command: str, cwd: Path = ROOT) -> None:
    subprocess.run(command, check=True, cwd=cwd, timeout=900)


def pinned(names: tuple[str, ...]) -> list[str]:
    """Returns `name==version` for each name, as the development requirements have it."""
    text = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    found = dict(re.findall(r"^([a-z0-9_.-]+)==([^ ;\\]+)", text, re.MULTILINE))
    return [f"{name}=={found[name]}" for name in names]


def check(service: str, scratch: Path) -> None:
    """Builds the service's environment as its image does and runs its unit tests there."""
    environment = scratch / service
    wheels = scratch / f"{service}-wheels"
    python = str(environment / "bin" / "python")
    install = (UV, "pip", "install", "--quiet", "--system-certs", "--python", python)
    run(UV, "venv", "--quiet", "--python", sys.executable, str(environment))
    requirements = str(ROOT / "requirements" / f"{service}.txt")
    run(*install, "--no-deps", "--require-hashes", "-r", requirements)
    for source in ("protos", "libs/servicekit", "libs/messaging", f"services/{service}"):
        run(
            *(UV, "build", "--quiet", "--wheel", "--no-build-isolation"),
            *("--python", sys.executable, "--out-dir", str(wheels), source),
        )
    run(*install, "--no-deps", *(str(wheel) for wheel in sorted(wheels.glob("*.whl"))))
    run(*install, *pinned(TEST_TOOLS))
    tests = str(ROOT / "services" / service / "tests")
    # Away from the sources, so that the wheels are what is imported.
    run(
        *(python, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml")),
        *("--rootdir", str(ROOT), "-p", "no:cacheprovider", tests),
        cwd=scratch,
    )


def main() -> None:
    """Checks the services named on the command line, or all."""
    with tempfile.TemporaryDirectory() as scratch:
        for service in sys.argv[1:] or SERVICES:
            print(f"--- {service}: unit tests with its own dependencies only", flush=True)
            check(service, Path(scratch))


if __name__ == "__main__":
    main()
