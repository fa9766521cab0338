"""The command line starts quickly: it loads no telemetry and nothing that only servers need."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["gamekeeper.cli", "gamekeeper.client"])
def test_neither_opentelemetry_nor_a_server_is_loaded(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        "unwanted = ('opentelemetry', 'protovalidate', 'grpc_reflection.v1alpha', 'uvloop')\n"
        "print([name for name in unwanted if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert printed.stdout == "[]\n"
