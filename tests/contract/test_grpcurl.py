"""Operators reach every service with grpcurl and nothing but its address.

Uses the real grpcurl that `make test` builds with Go; where it is not there, `buf curl` asks the
same questions, and the name of the test says which of the two it was.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GRPCURL = shutil.which("grpcurl") or str(ROOT / ".tool" / "bin" / "grpcurl")
TOOL = "grpcurl" if Path(GRPCURL).exists() else "buf curl"

SERVICES = {
    "gpu_metrics": "gaming.gpu_metrics.v1.GpuMetricsService",
    "autoscaler": "gaming.autoscaler.v1.AutoscalerService",
    "ai_router": "gaming.ai_router.v1.AiRouterService",
    "knowledge_base": "gaming.knowledge_base.v1.KnowledgeBaseService",
}
READS = [
    ("gpu_metrics", "GetFleet", {}, "snapshotTime"),
    ("gpu_metrics", "ListServers", {"page_size": 5}, None),
    ("autoscaler", "GetStatus", {}, "replicaId"),
    ("autoscaler", "ListTiers", {}, "tiers"),
    ("autoscaler", "GetTier", {"tier": "TIER_GOLD"}, "tier"),
    ("ai_router", "ListTiers", {}, "tiers"),
    ("knowledge_base", "ListDocuments", {"page_size": 3}, "documents"),
    ("knowledge_base", "Search", {"query": "Who may lend magic?", "limit": 3}, "results"),
]


def curl(address: str, method: str, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    body = json.dumps(request)
    if TOOL == "grpcurl":
        command = [GRPCURL, "-plaintext", "-max-time", "20", "-d", body, address, method]
    else:
        command = [
            *(str(Path(sys.executable).parent / "buf"), "curl", "--protocol", "grpc"),
            *("--http2-prior-knowledge", "--data", body, f"http://{address}/{method}"),
        ]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)


@pytest.mark.skipif(TOOL != "grpcurl", reason="buf curl cannot list; it is covered by the calls")
@pytest.mark.parametrize("name", SERVICES)
def test_grpcurl_lists_the_service_by_reflection(
    name: str, suite_addresses: dict[str, str]
) -> None:
    listed = subprocess.run(
        [GRPCURL, "-plaintext", suite_addresses[name], "list"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert SERVICES[name] in listed.stdout.split()
    assert "grpc.health.v1.Health" in listed.stdout.split()


@pytest.mark.parametrize(
    ("name", "method", "request_body", "expected"),
    READS,
    ids=[f"{TOOL}:{name}.{method}" for name, method, _, _ in READS],
)
def test_a_read_answers(
    name: str,
    method: str,
    request_body: dict[str, Any],
    expected: str | None,
    suite_addresses: dict[str, str],
) -> None:
    result = curl(suite_addresses[name], f"{SERVICES[name]}/{method}", request_body)
    assert result.returncode == 0, result.stderr
    if expected:
        assert json.loads(result.stdout)[expected]


def test_a_wrong_request_is_answered_with_the_field_and_the_rule(
    suite_addresses: dict[str, str],
) -> None:
    method = f"{SERVICES['autoscaler']}/GetTier"
    result = curl(suite_addresses["autoscaler"], method, {})
    assert result.returncode != 0
    shown = (result.stderr + result.stdout).lower()
    assert "invalidargument" in shown or "invalid_argument" in shown
    assert "tier" in shown
    assert "traceback" not in shown
