"""The threat model names its proofs; each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "security" / "threat-model.md"
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", DOCUMENT.read_text())))


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_proof_exists(path: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in functions_of(ROOT / path)


def test_every_attempt_has_a_proof() -> None:
    rows = [
        line
        for line in DOCUMENT.read_text().split("## What gRPC")[0].splitlines()
        if line.startswith("|") and line.count("|") == 4
    ]
    attempts = rows[rows.index("| attempt | what answers | proof |") + 2 :]
    assert len(attempts) >= 20
    assert [row for row in attempts if "::test_" not in row] == []
