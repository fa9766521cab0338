"""The simulation's inner loop and the routing policy, compiled to machine code by mypyc.

The sources stay what they are, plain Python that needs no compiler; a copy of them is compiled into
a cache folder named after the sources' hash, so what runs is never older than what was written. A
run gives the same hash compiled or not, two to three times faster.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["build", "environment"]

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "compiled"
PACKAGES = (ROOT / "libs/fleetsim/src/fleetsim", ROOT / "services/ai_router/src/ai_router")
POLICIES = ROOT / "tests/simulation/product_policies.py"
# What runs per request; the rest runs per second or less and stays interpreted.
COMPILED = (
    "fleetsim/fleet_observer.py",
    "fleetsim/model_server.py",
    "fleetsim/prefix_cache.py",
    "fleetsim/routing.py",
    "fleetsim/server_request.py",
    "fleetsim/simulation.py",
    "fleetsim/simulation_result.py",
    "fleetsim/tier_window.py",
    "fleetsim/virtual_time.py",
    "ai_router/domain",
    POLICIES.name,
)
# Read for their types only.
TYPES = (
    *(ROOT / "protos/gen", ROOT / "libs/servicekit/src"),
    ROOT / "services/autoscaler/src",
)
LONGEST_BUILD_SECONDS = 900


def build() -> Path:
    """Return a folder with the compiled packages, made first if the sources have changed.

    Raises subprocess.CalledProcessError with the compiler's output when they do not compile.
    """
    folder = CACHE / _sources_hash()
    if not folder.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        draft = CACHE / "draft"
        for package in PACKAGES:
            leave_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(package, draft / package.name, ignore=leave_out)
        shutil.copy(POLICIES, draft)
        types = os.pathsep.join(str(path) for path in (draft, *TYPES))
        print("compiling the simulation (about a minute, once per change) ...", flush=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "mypyc", "--config-file", os.devnull),
                *("--ignore-missing-imports", "--follow-imports=silent"),
                *_modules(draft),
            ],
            cwd=draft,
            env={**os.environ, "MYPYPATH": types},
            check=True,
            capture_output=True,
            timeout=LONGEST_BUILD_SECONDS,
        )
        shutil.rmtree(draft / "build")
        # Under its name only when it is whole: an interrupted build is never taken for a good one.
        draft.rename(folder)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Return this process's environment with the compiled packages before all others."""
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(folder), inherited) if part)
    return {**os.environ, "PYTHONPATH": path}


def _modules(folder: Path) -> list[str]:
    names: list[str] = []
    for name in COMPILED:
        path = folder / name
        found = sorted(path.glob("*.py")) if path.is_dir() else [path]
        names += [str(module.relative_to(folder)) for module in found]
    return names


def _sources_hash() -> str:
    digest = hashlib.sha256(sys.version.encode())
    files = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
    for path in (Path(__file__), POLICIES, *files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]
