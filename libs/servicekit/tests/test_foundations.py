"""Small parts everything stands on: identities, clocks, policies, addresses, named SQL."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from gaming.ai_router.v1 import ai_router_pb2
from gaming.autoscaler.v1 import autoscaler_pb2
from gaming.common.v1 import method_policy_pb2
from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2
from servicekit.caller import LOOPBACK_CALLER, current_caller, parse_identity, set_current_caller
from servicekit.channels import _service_config
from servicekit.method_policies import (
    DEADLINE_SECONDS,
    DeadlineClass,
    Role,
    declarations_of,
    declarations_of_loaded_services,
)
from servicekit.postgres import load_queries
from servicekit.testing import FakeClock
from servicekit.tls import host_of, is_loopback


class TestIdentities:
    @pytest.mark.parametrize("role", list(Role))
    def test_every_role_has_an_identity(self, role: Role) -> None:
        caller = parse_identity(f"spiffe://gamekeeper/{role.value}/name-1")
        assert caller is not None
        assert (caller.role, caller.authenticated) == (role, True)

    @pytest.mark.parametrize(
        "uri",
        [
            "",
            "spiffe://gamekeeper/",
            "spiffe://gamekeeper/operator",
            "spiffe://gamekeeper/operator/",
            "spiffe://gamekeeper/operator//x",
            "spiffe://gamekeeper/operator/../x",
            "spiffe://gamekeeper/operator/x\nadmin",
            "spiffe://gamekeeper/operator/x y",
            "spiffe://gamekeeper/emperor/x",
            "spiffe://gamekeeper/OPERATOR/x",
            "spiffe://gamekeeper.example/operator/x",
            "spiffe://other/operator/x",
            "https://gamekeeper/operator/x",
            "xspiffe://gamekeeper/operator/x",
        ],
    )
    def test_nothing_else_is_an_identity(self, uri: str) -> None:
        assert parse_identity(uri) is None

    async def test_the_caller_is_the_tasks_own(self) -> None:
        operator = parse_identity("spiffe://gamekeeper/operator/me")
        assert operator is not None

        async def handle() -> str:
            set_current_caller(operator)
            await asyncio.sleep(0)
            return current_caller().identity

        assert await asyncio.create_task(handle()) == "spiffe://gamekeeper/operator/me"
        assert current_caller() is LOOPBACK_CALLER


class TestFakeClock:
    async def test_it_stands_still_until_it_is_advanced(self) -> None:
        clock = FakeClock(datetime(2026, 5, 1, tzinfo=UTC))
        sleeping = asyncio.create_task(clock.sleep(10))
        await clock.advance(9.5)
        assert not sleeping.done()
        assert clock.now() == datetime(2026, 5, 1, tzinfo=UTC) + timedelta(seconds=9.5)
        await clock.advance(0.5)
        assert sleeping.done()
        assert clock.monotonic() == 10

    async def test_sleepers_wake_in_order_each_at_its_own_time(self) -> None:
        clock, woken = FakeClock(), []

        async def sleep(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append((seconds, clock.monotonic()))

        tasks = [asyncio.create_task(sleep(seconds)) for seconds in (3, 1, 2)]
        await clock.advance(5)
        assert woken == [(1, 1), (2, 2), (3, 3)]
        await asyncio.gather(*tasks)

    async def test_a_sleep_begun_by_a_woken_task_counts_from_its_waking(self) -> None:
        clock, times = FakeClock(), []

        async def tick() -> None:
            for _ in range(3):
                await clock.sleep(2)
                times.append(clock.monotonic())

        ticking = asyncio.create_task(tick())
        await clock.advance(7)
        assert times == [2, 4, 6]
        await ticking

    async def test_cancelled_sleepers_are_forgotten(self) -> None:
        clock = FakeClock()
        sleeping = asyncio.create_task(clock.sleep(5))
        await clock.settle()
        assert clock.sleeper_count == 1
        sleeping.cancel()
        await clock.settle()
        assert clock.sleeper_count == 0
        await clock.advance(10)


class TestMethodPolicies:
    @pytest.mark.parametrize(
        "module", [ai_router_pb2, autoscaler_pb2, gpu_metrics_pb2, knowledge_base_pb2]
    )
    def test_every_method_of_the_suite_declares_itself(self, module: Any) -> None:
        for service in module.DESCRIPTOR.services_by_name.values():
            for item in declarations_of(service):
                assert item.allowed_roles
                assert item.deadline_seconds == DEADLINE_SECONDS[item.deadline_class]

    def test_a_service_without_policies_is_refused(self) -> None:
        module: Any = health_pb2

        with pytest.raises(ValueError, match=r"/grpc\.health\.v1\.Health/Check declares no"):
            declarations_of(module.DESCRIPTOR.services_by_name["Health"])

    def test_every_value_of_the_proto_is_known_here(self) -> None:
        proto_roles = {
            item.name for item in method_policy_pb2.Role.DESCRIPTOR.values if item.number
        }
        assert proto_roles == {f"ROLE_{role.name}" for role in Role}
        proto_classes = {
            item.name for item in method_policy_pb2.DeadlineClass.DESCRIPTOR.values if item.number
        }
        assert proto_classes == {f"DEADLINE_CLASS_{item.name}" for item in DeadlineClass}

    def test_only_methods_that_may_be_repeated_are_retried(self) -> None:
        declarations = declarations_of_loaded_services()
        config = _service_config(declarations, 4)
        (policy,) = config["methodConfig"]
        retried = {f"/{item['service']}/{item['method']}" for item in policy["name"]}
        assert "/gaming.autoscaler.v1.AutoscalerService/GetTier" in retried
        assert all(declarations[path].retryable for path in retried)
        generating = [path for path in declarations if "/Generate" in path]
        assert generating
        assert retried.isdisjoint(generating)
        assert policy["retryPolicy"]["maxAttempts"] == 4
        assert config["retryThrottling"]["maxTokens"] > 0

    def test_one_attempt_means_no_retry(self) -> None:
        assert "methodConfig" not in _service_config(declarations_of_loaded_services(), 1)


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1:1",
            "127.8.9.1:1",
            "localhost:1",
            "[::1]:1",
            "unix:/tmp/s",
            "dns:///localhost:1",
            "ipv4:127.0.0.1:1",
            "ipv4:127.0.0.1:1,127.0.0.1:2",
            "ipv6:[::1]:1,[::1]:2",
        ],
    )
    def test_this_machine(self, address: str) -> None:
        assert is_loopback(address)

    @pytest.mark.parametrize(
        "address",
        [
            "0.0.0.0:1",
            "[::]:1",
            ":1",
            "10.0.0.1:1",
            "127.0.0.1.example.org:1",
            "localhost.example.org:1",
            "ipv4:127.0.0.1:1,10.0.0.1:1",
            "dns:///router.internal:1",
            "127.0.0.1",
            "",
        ],
    )
    def test_anything_else_is_not(self, address: str) -> None:
        assert not is_loopback(address)

    def test_the_host_of_an_address(self) -> None:
        assert (host_of("[::1]:50"), host_of("router:50")) == ("::1", "router")


class TestNamedSql:
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
        name = f"sql_{tmp_path.name.replace('-', '_')}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "queries.sql").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    def test_statements_go_by_the_name_above_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "-- file\n\n-- name: one\n-- says one\nSELECT 1;\n\n-- name: two\nSELECT\n  2;\n"
        queries = load_queries(self.package(tmp_path, monkeypatch, text))
        assert list(queries) == ["one", "two"]
        assert queries.one.endswith("SELECT 1;")
        assert queries.two == "SELECT\n  2;"
        with pytest.raises(AttributeError, match="three"):
            _ = queries.three

    @pytest.mark.parametrize(
        "text", ["-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;", "-- name: one\n"]
    )
    def test_a_name_without_a_statement_or_twice_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        with pytest.raises(ValueError, match="one"):
            load_queries(self.package(tmp_path, monkeypatch, text))
