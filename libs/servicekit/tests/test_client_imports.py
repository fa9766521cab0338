"""A client process loads what a client needs: telemetry and servers cost it half its start."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["servicekit.channels", "servicekit.watching"])
def test_a_client_loads_neither_opentelemetry_nor_a_server(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        "unwanted = ('opentelemetry', 'protovalidate', 'grpc_reflection.v1alpha', 'uvloop')\n"
        "print([name for name in unwanted if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert printed.stdout == "[]\n"
