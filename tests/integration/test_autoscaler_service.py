"""The autoscaler against a real database, a local AWS, and routers and a collector over gRPC."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import Asked, ScriptedCollector, ScriptedRouter
from autoscaler.testing.running import RunningReplica, quick_environment, run_replica
from fleetsim.cloud_state import CloudSettings, Instance
from fleetsim.instance_types import Market
from gaming.autoscaler.v1 import autoscaler_pb2 as pb
from gaming.common.v1 import tier_pb2
from localsuite.aws.account import seed_account
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.tiers import TierCapacity, group_name
from localsuite.postgres import EmbeddedPostgres
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings
from servicekit.settings import load_settings

GOLD, SILVER, BRONZE = tier_pb2.TIER_GOLD, tier_pb2.TIER_SILVER, tier_pb2.TIER_BRONZE
COMPRESSION = 200.0


async def until(condition: Callable[[], Any], timeout_seconds: float = 20.0) -> None:
    """Wait for other parties' state, which nobody announces."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110 - state of several parties, polled
            await asyncio.sleep(0.02)


@dataclass
class Hosts:
    """Simulated hosts: an instance that runs has a ready model server at once."""

    collector: ScriptedCollector
    tags: dict[str, Tier] = field(default_factory=dict)

    def on_instance_running(self, instance: Instance) -> None:
        self.collector.hosts[instance.instance_id] = Tier(instance.tags["gamekeeper:tier"])

    def on_interruption_notice(self, instance: Instance, at: float) -> None:
        self.collector.interruptions[instance.instance_id] = at

    def on_instance_terminated(self, instance: Instance) -> None:
        self.collector.hosts.pop(instance.instance_id, None)


class World:
    """Everything around the autoscaler."""

    def __init__(self, stack: AsyncExitStack, database_url: str) -> None:
        self._stack = stack
        self.collector = ScriptedCollector()  # type: ignore[abstract]  # what nobody calls answers UNIMPLEMENTED
        self.router = ScriptedRouter()
        self.environ = quick_environment(AUTOSCALER_DATABASE_URL=database_url)
        self.region = Region(
            seed=3,
            time_compression=COMPRESSION,
            settings=CloudSettings(launch_median_seconds=20.0),
            hosts=Hosts(self.collector),
        )

    async def start(self, gold: int = 1) -> None:
        aws = LocalAwsServer(self.region)
        aws.start()
        self._stack.callback(aws.stop)
        tiers = (
            TierCapacity("gold", ("g5.xlarge",), 0, 20, gold, 1, 0),
            TierCapacity("silver", ("g5.2xlarge",), 0, 10, 0),
            TierCapacity("bronze", ("c5.4xlarge",), 0, 4, 0),
        )
        await asyncio.to_thread(seed_account, aws.endpoint, tiers)
        settings = load_settings(ServerSettings, {})
        addresses = []
        for registration in (self.collector.registration, self.router.registration):
            server = RpcServer([registration], settings, clock=SystemClock())
            await server.start()
            self._stack.push_async_callback(server.stop, 0)
            addresses.append(server.address)
        self.environ |= {
            "AWS_ENDPOINT_URL": aws.endpoint,
            "AUTOSCALER_COLLECTOR": addresses[0],
            "AUTOSCALER_ROUTERS": addresses[1],
        }

    async def replica(self, name: str = "a", **environ: str) -> RunningReplica:
        return await self._stack.enter_async_context(run_replica(self.environ | environ, name))

    def group(self, tier: Tier = Tier.GOLD) -> Any:
        return self.region.groups.group(group_name(tier.value))

    def desired(self, tier: Tier = Tier.GOLD) -> int:
        size: int = self.group(tier).desired_capacity
        return size

    def ready(self, tier: Tier = Tier.GOLD) -> int:
        return sum(t is tier for t in self.collector.hosts.values())


@pytest.fixture
async def world(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    async with AsyncExitStack() as stack:
        yield World(stack, postgres_database)


async def list_changes(
    replica: RunningReplica, tier: tier_pb2.Tier.ValueType = GOLD
) -> list[pb.Decision]:
    answer = await replica.stub.ListDecisions(
        pb.ListDecisionsRequest(tier=tier, changes_only=True, page_size=100)
    )
    return list(answer.decisions)


def in_future(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return moment


async def test_demand_scales_out_and_calm_drains_then_terminates(world: World) -> None:
    await world.start(gold=1)
    await until(lambda: world.ready() == 1)
    world.router.asked[Tier.GOLD] = Asked(
        arrivals_per_second=20, running_requests=60, queued_requests=20
    )
    replica = await world.replica()
    await until(lambda: world.ready() >= 5)
    state = (await replica.stub.GetTier(pb.GetTierRequest(tier=GOLD))).tier
    assert state.desired >= 5
    picture = replica.replica.picture
    spot = 1.006 * 0.43  # the first is On-Demand, all others are Spot
    await until(lambda: picture.usd_per_hour == pytest.approx(1.006 + spot * (world.desired() - 1)))
    grown = world.desired()

    for host in list(world.collector.hosts):
        world.router.running[f"server-{host}"] = 1
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=3)
    await until(lambda: world.router.draining)
    assert world.desired() == grown  # nothing goes while requests run on it
    world.router.running.clear()
    await until(lambda: world.desired() == 1)
    await until(lambda: world.ready() == 1)
    terminated = world.region.groups.activities(group_name("gold"))
    assert any("user request, shrinking the capacity" in a.cause for a in terminated)
    rules = {d.rule for d in await list_changes(replica)}
    assert pb.DECISION_RULE_SCALE_OUT_DEMAND in rules
    assert pb.DECISION_RULE_SCALE_IN_DEMAND in rules


async def test_a_tier_starts_from_zero_and_says_why(world: World) -> None:
    await world.start(gold=0)
    replica = await world.replica()
    await until(lambda: replica.replica.leadership.leader_id == "a")
    world.router.asked[Tier.BRONZE] = Asked(queued_requests=1, shed_per_second=1)
    await until(lambda: world.ready(Tier.BRONZE) == 1)
    explained = await replica.stub.ExplainDecision(pb.ExplainDecisionRequest(tier=BRONZE))
    assert explained.decision.rule == pb.DECISION_RULE_START_FROM_ZERO
    assert explained.decision.outcome == pb.DECISION_OUTCOME_APPLIED
    assert [s.title for s in explained.steps][-1] == "start from zero"
    assert len(explained.counterfactuals) >= 3
    by_id = await replica.stub.ExplainDecision(
        pb.ExplainDecisionRequest(decision_id=explained.decision.decision_id)
    )
    assert by_id == explained


async def test_overrides_pin_a_tier_until_cleared_through_any_replica(world: World) -> None:
    await world.start(gold=0)
    leader = await world.replica("a")
    await until(lambda: leader.replica.leadership.leader_id == "a")
    follower = await world.replica("b")
    request = pb.SetOverrideRequest(
        tier=SILVER,
        override=pb.Override(
            kind=pb.OVERRIDE_KIND_PIN,
            desired=2,
            expire_time=in_future(600),
            reason="boss fight",
            set_by="ada",
        ),
        request_id=str(uuid.uuid4()),
    )
    answer = await follower.stub.SetOverride(request)
    assert answer.override.set_by == "ada"
    assert await follower.stub.SetOverride(request) == answer
    await until(lambda: world.desired(Tier.SILVER) == 2)
    state = (await leader.stub.GetTier(pb.GetTierRequest(tier=SILVER))).tier
    assert state.override.reason == "boss fight"
    clear = pb.ClearOverrideRequest(tier=SILVER, request_id=str(uuid.uuid4()))
    cleared = await leader.stub.ClearOverride(clear)
    assert cleared.cleared.desired == 2
    assert await leader.stub.ClearOverride(clear) == cleared
    await until(lambda: world.desired(Tier.SILVER) == 0)


async def test_overrides_that_contradict_themselves_are_refused(world: World) -> None:
    await world.start(gold=0)
    replica = await world.replica()
    for override, wrong in (
        (pb.Override(kind=pb.OVERRIDE_KIND_PIN, reason="x"), "override.desired"),
        (
            pb.Override(kind=pb.OVERRIDE_KIND_BOUNDS, minimum=5, maximum=2, reason="x"),
            "override.minimum",
        ),
        (pb.Override(kind=pb.OVERRIDE_KIND_UNSPECIFIED, reason="x"), "override.kind"),
    ):
        override.expire_time.CopyFrom(in_future(600))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.SetOverride(
                pb.SetOverrideRequest(tier=GOLD, override=override, request_id=str(uuid.uuid4()))
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
        assert wrong.encode() in bytes(details)


async def test_an_older_player_count_never_replaces_a_newer_one(world: World) -> None:
    await world.start(gold=1)
    replica = await world.replica()
    await until(lambda: replica.replica.leadership.leader_id == "a")
    newer, older = in_future(0), in_future(-30)
    report = replica.stub.ReportPlayers
    assert (await report(pb.ReportPlayersRequest(players_online=300, count_time=newer))) == (
        pb.ReportPlayersResponse(players_online=300)
    )
    late = await report(pb.ReportPlayersRequest(players_online=10, count_time=older))
    assert late.players_online == 300
    await until(lambda: replica.replica.loop is not None and world.ready() == 1)
    status = await replica.stub.GetStatus(pb.GetStatusRequest())
    assert status.players_online == 300
    assert status.leader_id == "a"
    assert status.database_reachable
    assert status.budget_usd_per_player_month == 8.0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await report(pb.ReportPlayersRequest(players_online=1, count_time=in_future(900)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_followers_stream_what_the_leader_decides(world: World) -> None:
    await world.start(gold=0)
    leader = await world.replica("a")
    await until(lambda: leader.replica.leadership.leader_id == "a")
    follower = await world.replica("b")
    await until(lambda: follower.replica.leadership.leader_id == "a")
    stream = follower.stub.WatchDecisions(pb.WatchDecisionsRequest(changes_only=True))
    seen: list[pb.WatchDecisionsResponse] = []

    async def watch() -> None:
        async for message in stream:
            if message.HasField("decision"):
                seen.append(message)  # noqa: PERF401 - the test looks at it while it grows

    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch())
        world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=2, running_requests=4)
        await until(lambda: seen)
        world.router.asked[Tier.SILVER] = Asked(arrivals_per_second=2, running_requests=4)
        await until(lambda: any(m.decision.tier == SILVER for m in seen))
        task.cancel()
    assert seen[0].decision.tier == GOLD
    assert seen[0].decision.decided_by == "a"
    resumed = follower.stub.WatchDecisions(
        pb.WatchDecisionsRequest(resume_token=seen[0].resume_token, changes_only=True)
    )
    async with asyncio.timeout(10):
        following = await anext(aiter(resumed))
    assert following.decision.decision_id == seen[1].decision.decision_id
    resumed.cancel()
    stale = leader.stub.WatchDecisions(pb.WatchDecisionsRequest(resume_token="gone.1"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stale))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_the_journal_is_read_page_by_page(world: World) -> None:
    await world.start(gold=0)
    replica = await world.replica()
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=2, running_requests=4)
    world.router.asked[Tier.SILVER] = Asked(arrivals_per_second=2, running_requests=4)
    await until(lambda: world.desired(Tier.GOLD) and world.desired(Tier.SILVER))
    await until(lambda: len(replica.replica.picture.reports) == 3)
    first = await replica.stub.ListDecisions(pb.ListDecisionsRequest(page_size=2))
    ids = [d.decision_id for d in first.decisions]
    request = pb.ListDecisionsRequest(page_size=2, page_token=first.next_page_token)
    second = await replica.stub.ListDecisions(request)
    ids += [d.decision_id for d in second.decisions]
    assert len(set(ids)) == len(ids) >= 3
    assert ids == sorted(ids, reverse=True)
    request.changes_only = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.ListDecisions(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_interrupted_spot_server_is_replaced_ahead_and_drained(world: World) -> None:
    await world.start(gold=3)  # one On-Demand, the rest Spot
    await until(lambda: world.ready() == 3)
    spot = next(
        i.instance_id
        for i in world.group().instances
        if world.region.cloud.instance(i.instance_id).market is Market.SPOT
    )
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=10, running_requests=46)
    replica = await world.replica(AUTOSCALER_INTERRUPTION_MARGIN_SECONDS="0")
    await until(lambda: replica.replica.leadership.leader_id == "a" and world.desired() == 3)
    world.collector.interruptions[spot] = datetime.now(UTC).timestamp() + 60
    await until(lambda: spot not in world.collector.hosts)
    assert f"server-{spot}" in world.router.draining
    await until(lambda: world.desired() == 3 and world.ready() == 3)
    changes = await list_changes(replica)
    replaced = [d for d in changes if d.rule == pb.DECISION_RULE_REPLACE_INTERRUPTED]
    assert replaced[-1].desired == 4
    assert list(replaced[0].drained_instance_ids) == [spot]


async def test_a_dry_run_writes_down_and_touches_nothing(world: World) -> None:
    await world.start(gold=1)
    await until(lambda: world.ready() == 1)
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=80)
    replica = await world.replica(AUTOSCALER_DRY_RUN="true")
    await until(lambda: replica.replica.feed.latest_change(Tier.GOLD) is not None)
    changes = await list_changes(replica)
    assert changes[0].outcome == pb.DECISION_OUTCOME_DRY_RUN
    assert world.desired() == 1
    assert (await replica.stub.GetStatus(pb.GetStatusRequest())).dry_run


async def test_with_the_database_away_it_grows_never_shrinks_and_writes_it_down_later(
    world: World, postgres_server: EmbeddedPostgres
) -> None:
    await world.start(gold=2)
    await until(lambda: world.ready() == 2)
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    replica = await world.replica()
    await until(lambda: Tier.GOLD in replica.replica.picture.reports)
    postgres_server.kill()
    try:
        await until(lambda: not replica.replica.leadership.database_reachable)
        world.router.asked[Tier.GOLD] = Asked()
        await asyncio.sleep(2.0)  # several stabilisation windows pass while nothing may happen
        assert world.desired() == 2
        world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=40, running_requests=110)
        await until(lambda: world.desired() >= 5)
        status = await replica.stub.GetStatus(pb.GetStatusRequest())
        assert not status.database_reachable
        assert status.buffered_decisions > 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.ReportPlayers(pb.ReportPlayersRequest(players_online=5))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        away = await replica.stub.ExplainDecision(pb.ExplainDecisionRequest(tier=GOLD))
        assert away.decision.rule == pb.DECISION_RULE_SCALE_OUT_DEMAND
    finally:
        postgres_server.start()
    await until(lambda: replica.replica.loop.journal.waiting_decisions == 0)
    journalled = await replica.stub.ListDecisions(pb.ListDecisionsRequest(tier=GOLD))
    assert away.decision.decision_id in {d.decision_id for d in journalled.decisions}
    rules = {d.rule for d in journalled.decisions}
    assert pb.DECISION_RULE_HOLD_DATABASE_AWAY in rules
