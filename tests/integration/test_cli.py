"""The command line against servers over real sockets; what they answer is scripted."""

# ruff: noqa: N802  # methods have the names of the protocol
# mypy: disable-error-code="abstract"
# The scripted servicers answer only what the commands ask; the rest stays UNIMPLEMENTED.

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gamekeeper.cli import app
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from gaming.events.events_pb2 import WEATHER_CHANGED
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gaming.knowledge_base.v1 import (
    knowledge_base_pb2,
    knowledge_base_pb2_grpc,
    lore_pb2,
    story_pb2,
    subscriptions_pb2,
    worlds_pb2,
)
from servicekit.errors import NotFound, ResourceExhausted
from servicekit.server import ServiceRegistration
from servicekit.testing import serve_for_test

WORLD_ID = "7b0d9c1e-58f1-4a39-9f0a-0c8a3a5e2f11"


def a_decision() -> autoscaler_pb2.Decision:
    return autoscaler_pb2.Decision(
        decision_id="01JD-1",
        tier=tier_pb2.TIER_GOLD,
        previous_desired=2,
        desired=5,
        rule=autoscaler_pb2.DECISION_RULE_SCALE_OUT_DEMAND,
        summary="demand of 41,000 tokens needs 5 servers [at 70 %]",
        outcome=autoscaler_pb2.DECISION_OUTCOME_APPLIED,
        decided_by="replica-a",
    )


class Autoscaler(autoscaler_pb2_grpc.AutoscalerServiceServicer):
    def __init__(self) -> None:
        self.overrides: list[autoscaler_pb2.SetOverrideRequest] = []

    async def GetStatus(self, request: Any, context: Any) -> autoscaler_pb2.GetStatusResponse:
        return autoscaler_pb2.GetStatusResponse(
            replica_id="replica-a",
            leader_id="replica-a",
            database_reachable=True,
            players_online=840,
            cost_usd_per_hour=9.5,
            cost_usd_per_player_month=8.26,
            budget_usd_per_player_month=8,
        )

    async def ListTiers(self, request: Any, context: Any) -> autoscaler_pb2.ListTiersResponse:
        return autoscaler_pb2.ListTiersResponse(
            tiers=[
                autoscaler_pb2.TierState(
                    tier=tier_pb2.TIER_GOLD, desired=5, last_decision=a_decision()
                )
            ]
        )

    async def ListDecisions(
        self, request: autoscaler_pb2.ListDecisionsRequest, context: Any
    ) -> autoscaler_pb2.ListDecisionsResponse:
        return autoscaler_pb2.ListDecisionsResponse(decisions=[a_decision()] * request.page_size)

    async def WatchDecisions(
        self, request: Any, context: Any
    ) -> AsyncIterator[autoscaler_pb2.WatchDecisionsResponse]:
        yield autoscaler_pb2.WatchDecisionsResponse(resume_token="t1")
        yield autoscaler_pb2.WatchDecisionsResponse(resume_token="t2", decision=a_decision())

    async def ExplainDecision(
        self, request: autoscaler_pb2.ExplainDecisionRequest, context: Any
    ) -> autoscaler_pb2.ExplainDecisionResponse:
        if request.decision_id == "unknown":
            raise NotFound("there is no decision 'unknown'")
        return autoscaler_pb2.ExplainDecisionResponse(
            decision=a_decision(),
            steps=[
                autoscaler_pb2.ExplanationStep(
                    title="demand over capacity", detail="41,000 / 11,200", desired_after=5
                )
            ],
            counterfactuals=[
                autoscaler_pb2.Counterfactual(change="without queued requests", desired=4)
            ],
        )

    async def SetOverride(
        self, request: autoscaler_pb2.SetOverrideRequest, context: Any
    ) -> autoscaler_pb2.SetOverrideResponse:
        self.overrides.append(request)
        return autoscaler_pb2.SetOverrideResponse(override=request.override)

    async def ClearOverride(self, request: Any, context: Any) -> Any:
        return autoscaler_pb2.ClearOverrideResponse()


class Router(ai_router_pb2_grpc.AiRouterServiceServicer):
    async def ListTiers(self, request: Any, context: Any) -> ai_router_pb2.ListTiersResponse:
        return ai_router_pb2.ListTiersResponse(
            tiers=[
                ai_router_pb2.RouterTier(
                    tier=tier_pb2.TIER_GOLD, queued_requests=3, queue_limit=100
                )
            ]
        )

    async def Generate(
        self, request: ai_router_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[ai_router_pb2.GenerateResponse]:
        if request.spec.tier == tier_pb2.TIER_BRONZE:
            raise ResourceExhausted("the Bronze queue is full", retry_after_seconds=2.5)
        yield ai_router_pb2.GenerateResponse(
            route=ai_router_pb2.RouteTaken(tier=tier_pb2.TIER_GOLD, server_id="gold-1")
        )
        for text in ("The ferry", "woman."):
            yield ai_router_pb2.GenerateResponse(delta=ai_router_pb2.TextDelta(text=text))
        yield ai_router_pb2.GenerateResponse(end=ai_router_pb2.GenerationEnd(output_tokens=2))


class Collector(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    async def GetFleet(self, request: Any, context: Any) -> gpu_metrics_pb2.GetFleetResponse:
        server = fleet_pb2.ModelServerSample(
            server_id="gold-1",
            endpoint_url="http://127.0.0.1:8000",
            tier=tier_pb2.TIER_GOLD,
            state=fleet_pb2.MODEL_SERVER_STATE_READY,
            running_requests=7,
            gpu_uuids=["GPU-1"],
        )
        host = fleet_pb2.HostView(
            host=fleet_pb2.Host(host_id="i-1", instance_type="g5.xlarge", simulated=True),
            gpus=[fleet_pb2.GpuSample(gpu_uuid="GPU-1", utilization_permille=735)],
            servers=[server],
            freshness=fleet_pb2.FRESHNESS_FRESH,
        )
        return gpu_metrics_pb2.GetFleetResponse(fleet=gpu_metrics_pb2.FleetSnapshot(hosts=[host]))


class KnowledgeBase(knowledge_base_pb2_grpc.KnowledgeBaseServiceServicer):
    async def IngestDocuments(
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[lore_pb2.IngestDocumentsResponse]:
        stored = 0
        async for request in request_iterator:
            if request.HasField("document"):
                stored += 1
                yield lore_pb2.IngestDocumentsResponse(
                    document=lore_pb2.IngestedDocument(
                        path=request.document.path,
                        state=lore_pb2.INGEST_STATE_STORED,
                        chunks=3,
                    )
                )
        yield lore_pb2.IngestDocumentsResponse(
            summary=lore_pb2.IngestSummary(stored_documents=stored)
        )

    async def Search(self, request: Any, context: Any) -> lore_pb2.SearchResponse:
        citation = lore_pb2.Citation(
            path="ferries.md", heading_path=["Ferries", "Who keeps them"], start_line=4, end_line=9
        )
        return lore_pb2.SearchResponse(
            results=[
                lore_pb2.SearchResult(text="Mara keeps the ferry.", citation=citation, score=0.9)
            ]
        )

    async def GetWorld(
        self, request: worlds_pb2.GetWorldRequest, context: Any
    ) -> worlds_pb2.GetWorldResponse:
        if request.name != "Hollowmere":
            raise NotFound(f"there is no world named {request.name!r}")
        return worlds_pb2.GetWorldResponse(
            world=worlds_pb2.World(world_id=WORLD_ID, name="Hollowmere")
        )

    async def Recall(
        self, request: story_pb2.RecallRequest, context: Any
    ) -> story_pb2.RecallResponse:
        assert request.world_id == WORLD_ID
        event = story_pb2.StoryEvent(text="Mara lent her name.", kind="oath")
        return story_pb2.RecallResponse(events=[story_pb2.RecalledEvent(event=event, score=0.8)])

    async def SetEventSubscription(
        self, request: subscriptions_pb2.SetEventSubscriptionRequest, context: Any
    ) -> subscriptions_pb2.SetEventSubscriptionResponse:
        assert request.world_id == WORLD_ID
        return subscriptions_pb2.SetEventSubscriptionResponse(subscription=request.subscription)

    async def GetEventSubscription(
        self, request: Any, context: Any
    ) -> subscriptions_pb2.GetEventSubscriptionResponse:
        return subscriptions_pb2.GetEventSubscriptionResponse()

    async def DeleteEventSubscription(
        self, request: Any, context: Any
    ) -> subscriptions_pb2.DeleteEventSubscriptionResponse:
        subscription = subscriptions_pb2.EventSubscription(event_types=[WEATHER_CHANGED])
        return subscriptions_pb2.DeleteEventSubscriptionResponse(subscription=subscription)


class Suite:
    """The command line, pointed at the scripted servers."""

    def __init__(self, addresses: dict[str, str], autoscaler: Autoscaler) -> None:
        self.autoscaler = autoscaler
        self._options = [
            word
            for name, address in addresses.items()
            for word in (f"--{name.replace('_', '-')}", address)
        ]

    async def run(self, *arguments: str) -> Result:
        # The command has an event loop of its own, so it runs beside the servers' one.
        command = [*self._options, *arguments]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, command))

    async def json(self, *arguments: str) -> Any:
        result = await self.run(*arguments, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")


@pytest.fixture
async def suite() -> AsyncIterator[Suite]:
    autoscaler = Autoscaler()
    servers = {
        "autoscaler": ServiceRegistration.of(
            autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
            autoscaler,
            autoscaler_pb2.DESCRIPTOR.services_by_name["AutoscalerService"],
        ),
        "ai_router": ServiceRegistration.of(
            ai_router_pb2_grpc.add_AiRouterServiceServicer_to_server,
            Router(),
            ai_router_pb2.DESCRIPTOR.services_by_name["AiRouterService"],
        ),
        "gpu_metrics": ServiceRegistration.of(
            gpu_metrics_pb2_grpc.add_GpuMetricsServiceServicer_to_server,
            Collector(),
            gpu_metrics_pb2.DESCRIPTOR.services_by_name["GpuMetricsService"],
        ),
        "knowledge_base": ServiceRegistration.of(
            knowledge_base_pb2_grpc.add_KnowledgeBaseServiceServicer_to_server,
            KnowledgeBase(),
            knowledge_base_pb2.DESCRIPTOR.services_by_name["KnowledgeBaseService"],
        ),
    }
    # One server answers for all four; the commands cannot tell, and a test starts faster.
    async with serve_for_test(list(servers.values())) as (server, _):
        yield Suite(dict.fromkeys(servers, server.address), autoscaler)


async def test_status_shows_health_and_cost(suite: Suite) -> None:
    shown = (await suite.run("status")).stdout
    assert shown.count("SERVING") == 4
    assert "$8.26 per player and month" in shown
    document = await suite.json("status")
    assert document["services"]["ai_router"]["state"] == "SERVING"
    assert document["autoscaler"]["playersOnline"] == 840


async def test_tiers_joins_sizes_and_queues(suite: Suite) -> None:
    shown = (await suite.run("tiers")).stdout
    assert "gold" in shown
    assert "3/100" in shown
    assert "[at 70 %]" in shown
    document = await suite.json("tiers")
    assert document["autoscaler"]["tiers"][0]["desired"] == 5
    assert document["router"]["tiers"][0]["queuedRequests"] == 3


async def test_why_tells_steps_and_alternatives(suite: Suite) -> None:
    shown = (await suite.run("why", "--tier", "gold")).stdout
    for expected in ("gold 2 → 5", "41,000 / 11,200", "4 without queued requests", "01JD-1"):
        assert expected in shown
    document = await suite.json("why")
    assert document["decision"]["rule"] == "DECISION_RULE_SCALE_OUT_DEMAND"


async def test_what_does_not_exist_has_an_exit_code_of_its_own(suite: Suite) -> None:
    result = await suite.run("why", "unknown")
    assert result.exit_code == 4
    assert "there is no decision 'unknown'" in result.output
    failed = await suite.run("why", "unknown", "-o", "json")
    assert json.loads(failed.stderr)["error"]["status"] == "NOT_FOUND"


async def test_decisions_are_listed_and_watched(suite: Suite) -> None:
    assert len((await suite.json("decisions", "--limit", "2"))["decisions"]) == 2
    watched = await suite.run("decisions", "--watch", "-o", "json")
    assert [json.loads(line)["decisionId"] for line in watched.stdout.splitlines()] == ["01JD-1"]


async def test_an_override_carries_its_end_its_reason_and_its_author(suite: Suite) -> None:
    result = await suite.run(
        "override", "set", "gold", "--pin", "5", "--for", "2h", "--reason", "load test"
    )
    assert result.exit_code == 0, result.output
    assert "pinned to 5 until" in result.stdout
    (sent,) = suite.autoscaler.overrides
    assert sent.override.reason == "load test"
    assert "@" in sent.override.set_by
    assert (await suite.run("override", "clear", "gold")).stdout.strip() == "gold: ended nothing"


async def test_gpus_shows_readings_and_a_dash_for_missing_ones(suite: Suite) -> None:
    shown = (await suite.run("gpus")).stdout
    row = next(line for line in shown.splitlines() if "gold-1" in line)
    assert "74 %" in row
    assert " - " in row
    assert "GPUs: 1, hosts: 1, all simulated" in shown
    assert (await suite.json("gpus"))["fleet"]["hosts"][0]["host"]["hostId"] == "i-1"


async def test_ask_prints_the_text_alone_on_standard_output(suite: Suite) -> None:
    result = await suite.run("ask", "Who keeps the ferry?", "--tier", "gold")
    assert result.stdout == "The ferrywoman.\n"
    assert "gold-1" in result.stderr
    document = await suite.json("ask", "Who keeps the ferry?")
    assert document["text"] == "The ferrywoman."
    assert document["end"]["outputTokens"] == 2


async def test_being_turned_away_says_when_to_come_back(suite: Suite) -> None:
    result = await suite.run("ask", "Anybody?", "--tier", "bronze")
    assert result.exit_code == 6
    assert "the Bronze queue is full" in result.output
    assert "try again in 2.5 s" in result.output


async def test_lore_is_ingested_and_found(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "ferries.md").write_text("# Ferries")
    (tmp_path / ".hidden.md").write_text("# Not this")
    ingested = await suite.run("lore", "ingest", str(tmp_path))
    assert "deep/ferries.md" in ingested.stdout
    assert "1 stored" in ingested.stdout
    found = await suite.run("lore", "search", "who keeps the ferry")
    assert "ferries.md > Ferries > Who keeps them, lines 4-9" in found.stdout
    assert (await suite.json("lore", "search", "ferry"))["results"][0]["score"] == 0.9


async def test_an_empty_directory_is_not_ingested(suite: Suite, tmp_path: Path) -> None:
    result = await suite.run("lore", "ingest", str(tmp_path))
    assert result.exit_code == 2
    assert "no Markdown" in result.output


async def test_a_world_may_be_named_by_its_name(suite: Suite) -> None:
    assert "Mara lent her name." in (await suite.run("world", "recall", "Hollowmere", "who")).stdout
    missing = await suite.run("world", "recall", "Nowhere", "who")
    assert missing.exit_code == 4
    assert "no world named 'Nowhere'" in missing.output


async def test_a_world_takes_events_from_the_bus_and_stops_taking_them(suite: Suite) -> None:
    chosen = ("--type", "weather.changed", "--type", "time.changed", "--source", "time-manager")
    taken = await suite.run("world", "subscribe", "Hollowmere", *chosen)
    assert taken.stdout == "takes weather.changed, time.changed from time-manager\n"
    shown = await suite.run("world", "subscription", "Hollowmere")
    assert shown.stdout == "takes nothing from the event bus\n"
    ended = await suite.run("world", "unsubscribe", "Hollowmere")
    assert ended.stdout == "no longer takes weather.changed from every service\n"
    wrong = await suite.run("world", "subscribe", "Hollowmere", "--type", "weather.chnged")
    assert wrong.exit_code == 2
    assert "gamekeeper events types" in wrong.output


async def test_a_service_that_is_away_is_one_sentence_and_what_to_do() -> None:
    away = Suite({"autoscaler": "127.0.0.1:1"}, Autoscaler())
    result = await away.run("why", "--timeout", "5")
    assert result.exit_code == 3
    assert "autoscaler cannot be reached at 127.0.0.1:1" in result.output
    assert "gamekeeper up" in result.output
    as_json = await away.run("why", "-o", "json", "--timeout", "5")
    assert json.loads(as_json.stderr)["error"]["status"] == "UNAVAILABLE"


async def test_status_of_services_that_are_away_exits_with_unreachable() -> None:
    addresses = dict.fromkeys(
        ("autoscaler", "ai_router", "gpu_metrics", "knowledge_base"), "127.0.0.1:1"
    )
    result = await Suite(addresses, Autoscaler()).run("status", "--timeout", "1")
    assert result.exit_code == 3
    assert result.stdout.count("NOT REACHED") == 4
