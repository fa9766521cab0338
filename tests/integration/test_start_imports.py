"""What a service loads before it answers: each module here once cost a restart a tenth or more."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ALWAYS = ("boto3", "botocore", "cryptography", "opentelemetry.sdk", "rich")
"""Needed with AWS, TLS, a telemetry collector and by the command line, and loaded with them."""

SERVICES = {
    "ai_router.__main__": (*ALWAYS, "asyncpg", "numpy"),
    "autoscaler.__main__": (*ALWAYS, "aiohttp", "numpy"),
    "gpu_metrics.agent_process": ("asyncpg", "boto3", "numpy"),
    "gpu_metrics.collector_process": (*ALWAYS, "aiohttp", "asyncpg"),
    "knowledge_base.__main__": (*ALWAYS, "aiohttp", "onnx"),
}


@pytest.mark.parametrize("module", SERVICES)
def test_a_service_that_begins_loads_nothing_that_no_caller_needs(module: str) -> None:
    script = (
        "import sys\n"
        "from servicekit.process_start import begin\n"
        f"begin()\nimport {module}, servicekit.server\n"
        f"print([name for name in {SERVICES[module]!r} if name in sys.modules])"
    )
    assert _printed(script) == "[]"


def test_who_begins_can_still_load_rich_and_collects_garbage_once_it_runs() -> None:
    script = (
        "import gc, sys\n"
        "from servicekit.process_start import begin\n"
        "begin()\n"
        "import rich, servicekit.runtime, servicekit.settings\n"
        "before = gc.isenabled()\n"
        "from servicekit.telemetry import TelemetrySettings\n"
        "async def main(settings, runtime):\n"
        "    print(before, gc.isenabled(), gc.get_freeze_count() > 0)\n"
        "servicekit.runtime.run_service('tiny', TelemetrySettings, main, environ={})"
    )
    assert _printed(script) == "False True True"


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other libraries have no arenas for threads"
)
@pytest.mark.parametrize(("begins", "arenas"), [(True, "one"), (False, "several")])
def test_threads_of_a_service_take_memory_from_one_place(begins: bool, arenas: str) -> None:
    script = (
        "import ctypes, threading\n"
        "from servicekit.process_start import begin\n"
        f"{begins} and begin()\n"
        "libc, all_there, done = ctypes.CDLL(None), threading.Barrier(9), threading.Event()\n"
        "def take():\n"
        "    libc.malloc(5000)\n"
        "    all_there.wait()\n"
        "    done.wait()\n"
        "for _ in range(8):\n"
        "    threading.Thread(target=take).start()\n"
        "all_there.wait()\n"
        "libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, 'stdout'))\n"
        "libc.fflush(None)\n"
        "done.set()"
    )
    assert ("one" if _printed(script).count("<heap ") == 1 else "several") == arenas


def _printed(script: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return ran.stdout.strip()
