"""What every store promises, on the in-memory one that tests use and on the real database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from autoscaler.adapters.postgres_journal import PostgresDrains
from autoscaler.adapters.postgres_stores import open_postgres_stores
from autoscaler.buffered_journal import BufferedJournal, SaveDecision
from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import Counterfactual, DecisionRecord, Outcome
from autoscaler.domain.drains import Drain
from autoscaler.domain.journal_rules import decision_id
from autoscaler.domain.observation import Players
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.player_counts import PlayerShare
from autoscaler.domain.tiers import Tier
from autoscaler.ports import DecisionFilter, RequestIdReused, Stores, TierReport
from autoscaler.testing.builders import START, build_policy, build_tier_snapshot
from autoscaler.testing.memory_stores import MemoryDatabase
from gaming.events.events_pb2 import CapacityChangedEvent, GameEvent
from localsuite.postgres import EmbeddedPostgres
from servicekit.postgres import DatabaseAway, load_queries


@dataclass
class Backend:
    """Stores, a second set on the same data, and a way to take the data away."""

    stores: Stores
    others: Stores
    lose: Callable[[], None]
    restore: Callable[[], object]


@pytest.fixture(params=["memory", "postgres"])
async def backend(
    request: pytest.FixtureRequest, postgres_server: EmbeddedPostgres, postgres_database: str
) -> AsyncIterator[Backend]:
    if request.param == "memory":
        database = MemoryDatabase(now=lambda: datetime.now(UTC).timestamp())

        def lose() -> None:
            database.is_reachable = False

        def restore() -> None:
            database.is_reachable = True

        yield Backend(database.stores(), database.stores(), lose, restore)
        return
    async with (
        open_postgres_stores(postgres_database) as one,
        open_postgres_stores(postgres_database) as other,
    ):
        await asyncio.gather(one.migrate(), other.migrate())
        yield Backend(one.stores, other.stores, postgres_server.kill, postgres_server.start)


def record(
    number: int = 0, servers: int = 2, tokens: int = 40_000, **changes: Any
) -> DecisionRecord:
    decision, _ = decide(
        build_tier_snapshot(servers, tokens), ControlState(), build_policy(), START
    )
    tier = changes.pop("tier", Tier.GOLD)
    values: dict[str, Any] = {
        "decision_id": decision_id(int(START * 1000) + number, 0, number),
        "decide_time": START + number,
        "decision": replace(decision, tier=tier),
        "counterfactuals": (Counterfactual("with 50% of the demand", 3),),
        "decided_by": "a",
        "lease_epoch": 1,
        "outcome": Outcome.APPLIED,
    }
    return DecisionRecord(**(values | changes))


async def test_a_decision_comes_back_as_it_was(backend: Backend) -> None:
    journal = backend.stores.journal
    await journal.save(record())
    assert await backend.others.journal.get(record().decision_id) == record()
    assert await journal.get(str(uuid.uuid4())) is None
    assert await journal.get("no id of ours") is None


async def test_an_intent_is_shown_once_its_outcome_is_known_and_the_outcome_stays(
    backend: Backend,
) -> None:
    journal = backend.stores.journal
    intent = record(outcome=None)
    await journal.save(intent)
    assert await journal.get(intent.decision_id) is None
    assert (await journal.list_page(DecisionFilter(), 10)).records == ()
    failed = replace(intent, outcome=Outcome.FAILED, outcome_message="refused")
    await journal.save(failed)
    await journal.save(replace(intent, outcome=Outcome.APPLIED))
    await journal.save(intent)
    assert await journal.get(intent.decision_id) == failed


async def test_pages_are_newest_first_and_filtered(backend: Backend) -> None:
    journal = backend.stores.journal
    records = [
        record(0),
        record(1, tier=Tier.SILVER),
        record(2, servers=6, tokens=36_000, outcome=Outcome.NO_CHANGE),
        record(3),
        record(4, servers=6, tokens=36_000, outcome=Outcome.FAILED),
    ]
    for each in records:
        await journal.save(each)
    first = await journal.list_page(DecisionFilter(), 2)
    assert (first.records, first.has_more) == ((records[4], records[3]), True)
    rest = await journal.list_page(DecisionFilter(before_id=first.records[-1].decision_id), 10)
    assert (rest.records, rest.has_more) == ((records[2], records[1], records[0]), False)
    changes = await journal.list_page(DecisionFilter(tier=Tier.GOLD, changes_only=True), 10)
    assert changes.records == (records[4], records[3], records[0])
    between = await journal.list_page(DecisionFilter(start_time=START + 1, end_time=START + 3), 10)
    assert between.records == (records[2], records[1])


async def test_the_tail_gives_every_outcome_once_it_is_known(backend: Backend) -> None:
    journal, others = backend.stores.journal, backend.others.journal
    await journal.save(record(0))
    tail = await others.tail(None, 10)
    assert tail.records == ()
    await journal.save(record(1, outcome=None))
    await journal.save(record(2))
    await journal.save(record(1))
    seen = await others.tail(tail.position, 10)
    ids = [r.decision_id for r in seen.records if r.decision_id != record(0).decision_id]
    assert ids == [record(2).decision_id, record(1).decision_id]
    again = await others.tail(seen.position, 10)
    assert again.position == seen.position


async def test_intents_of_earlier_leaders_are_closed(backend: Backend) -> None:
    journal = backend.stores.journal
    await journal.save(record(0, outcome=None))
    await journal.save(record(1, outcome=None, lease_epoch=2))
    assert await journal.close_intents(2, "lost") == 1
    closed = await journal.get(record(0).decision_id)
    assert closed is not None
    assert (closed.outcome, closed.outcome_message) == (Outcome.FAILED, "lost")
    assert await journal.get(record(1).decision_id) is None


async def test_reports_are_overwritten_per_tier(backend: Backend) -> None:
    journal = backend.stores.journal
    gold = TierReport(record=record(0), minimum=1, maximum=9, usd_per_hour=2.5)
    silver = TierReport(record=record(1, tier=Tier.SILVER), minimum=0, maximum=3, usd_per_hour=0.0)
    await journal.save_reports([gold, silver])
    newer = replace(gold, usd_per_hour=3.0)
    await journal.save_reports([newer])
    reports = await backend.others.journal.reports()
    assert reports == {Tier.GOLD: newer, Tier.SILVER: silver}


async def test_old_decisions_are_deleted(backend: Backend) -> None:
    journal = backend.stores.journal
    for number in range(3):
        await journal.save(record(number))
    assert await journal.delete_before(START + 2) == 2
    left = await journal.list_page(DecisionFilter(), 10)
    assert [r.decide_time for r in left.records] == [START + 2]


DRAIN = Drain(
    instance_id="i-1",
    tier=Tier.GOLD,
    server_ids=("gold-1", "gold-2"),
    start_time=START,
    deadline=START + 60,
    decision_id=record().decision_id,
)


async def test_drains_outlive_their_leader(backend: Backend) -> None:
    first = await backend.stores.lease.acquire("first", 60)
    assert await backend.stores.drains.save_drain(DRAIN, first.epoch)
    assert await backend.stores.drains.save_drain(replace(DRAIN, deadline=START + 999), first.epoch)
    assert await backend.others.drains.drains() == {"i-1": DRAIN}
    await backend.stores.lease.release("first")
    second = await backend.others.lease.acquire("second", 60)
    assert await backend.others.drains.end_drain("i-1", second.epoch)
    assert await backend.others.drains.end_drain("i-1", second.epoch)
    assert await backend.stores.drains.drains() == {}


async def test_a_leader_of_an_earlier_epoch_writes_no_drain_and_ends_none(
    backend: Backend,
) -> None:
    first = await backend.stores.lease.acquire("first", 60)
    await backend.stores.lease.release("first")
    # Its lease has run out, and yet nobody else leads: what it says of drains still counts.
    assert await backend.stores.drains.save_drain(DRAIN, first.epoch)
    await backend.others.lease.acquire("second", 60)
    late = replace(DRAIN, instance_id="i-2")
    assert not await backend.stores.drains.save_drain(late, first.epoch)
    assert not await backend.stores.drains.end_drain("i-1", first.epoch)
    assert await backend.others.drains.drains() == {"i-1": DRAIN}


async def test_who_takes_the_lease_sees_the_drain_that_was_being_written_before(
    postgres_database: str,
) -> None:
    async with open_postgres_stores(postgres_database) as database:
        await database.migrate()
        lease, drains = database.stores.lease, database.stores.drains
        first = await lease.acquire("first", 60)
        await lease.release("first")
        async with database.pool.acquire() as slow:
            writing = PostgresDrains(OneConnection(slow), load_queries("autoscaler"))
            async with slow.transaction():
                assert await writing.save_drain(DRAIN, first.epoch)
                taking = asyncio.create_task(lease.acquire("second", 60))
                await until_one_waits_for_a_lock(database.pool)
                assert not taking.done()
            assert (await taking).holder == "second"
        assert list(await drains.drains()) == ["i-1"]


class OneConnection:
    """A pool of one connection, in whatever transaction that is."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    def fetchval(self, query: str, *arguments: Any) -> Any:
        return self._connection.fetchval(query, *arguments)


async def until_one_waits_for_a_lock(pool: asyncpg.Pool) -> None:
    waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
    async with asyncio.timeout(30):
        while not await pool.fetchval(waiting):  # noqa: ASYNC110 - what is waited for is in the server
            await asyncio.sleep(0.01)


PIN = Override(
    kind=OverrideKind.PIN, desired=4, expire_time=START + 600, reason="boss", set_by="ada"
)


async def test_a_hold_is_in_force_until_it_expires_or_is_cleared(backend: Backend) -> None:
    holds = backend.stores.overrides
    await holds.set_override(Tier.GOLD, PIN, str(uuid.uuid4()), START)
    assert await backend.others.overrides.overrides(START + 1) == {Tier.GOLD: PIN}
    assert await holds.overrides(START + 601) == {}
    freeze = replace(PIN, kind=OverrideKind.FREEZE, desired=None)
    await holds.set_override(Tier.GOLD, freeze, str(uuid.uuid4()), START + 2)
    assert await holds.overrides(START + 3) == {Tier.GOLD: freeze}
    assert await holds.clear_override(Tier.GOLD, str(uuid.uuid4()), "bob", START + 4) == freeze
    assert await holds.overrides(START + 5) == {}
    assert await holds.clear_override(Tier.GOLD, str(uuid.uuid4()), "bob", START + 6) is None


async def test_clearing_an_expired_hold_clears_nothing(backend: Backend) -> None:
    holds = backend.stores.overrides
    await holds.set_override(Tier.GOLD, PIN, str(uuid.uuid4()), START)
    assert await holds.clear_override(Tier.GOLD, str(uuid.uuid4()), "bob", START + 700) is None
    await holds.set_override(
        Tier.GOLD, replace(PIN, expire_time=START + 2_000), str(uuid.uuid4()), START + 800
    )
    assert Tier.GOLD in await holds.overrides(START + 900)


async def test_a_repeated_request_changes_nothing_and_gets_the_first_answer(
    backend: Backend,
) -> None:
    holds, again = backend.stores.overrides, backend.others.overrides
    set_id, clear_id = str(uuid.uuid4()), str(uuid.uuid4())
    await holds.set_override(Tier.GOLD, PIN, set_id, START)
    assert await holds.clear_override(Tier.GOLD, clear_id, "bob", START + 1) == PIN
    assert await again.set_override(Tier.GOLD, PIN, set_id, START + 2) == PIN
    assert await holds.overrides(START + 3) == {}
    await holds.set_override(Tier.GOLD, PIN, str(uuid.uuid4()), START + 4)
    assert await again.clear_override(Tier.GOLD, clear_id, "bob", START + 5) == PIN
    assert Tier.GOLD in await holds.overrides(START + 6)


async def test_a_request_id_belongs_to_one_request(backend: Backend) -> None:
    holds = backend.stores.overrides
    request_id = str(uuid.uuid4())
    await holds.set_override(Tier.GOLD, PIN, request_id, START)
    with pytest.raises(RequestIdReused):
        await holds.set_override(Tier.GOLD, replace(PIN, desired=9), request_id, START)
    with pytest.raises(RequestIdReused):
        await holds.clear_override(Tier.GOLD, request_id, "bob", START)


async def test_many_holds_at_once_leave_one(backend: Backend) -> None:
    await asyncio.gather(
        *(
            (backend.stores if n % 2 else backend.others).overrides.set_override(
                Tier.GOLD, replace(PIN, desired=n), str(uuid.uuid4()), START
            )
            for n in range(8)
        )
    )
    assert len(await backend.stores.overrides.overrides(START + 1)) == 1


async def test_shares_of_players_add_up_and_only_newer_ones_count(backend: Backend) -> None:
    now = datetime.now(UTC).timestamp()
    players = backend.stores.players

    def share(source: str, world_id: str, online: int, age_seconds: float) -> PlayerShare:
        count_time = round(now - age_seconds, 3)
        return PlayerShare(source=source, world_id=world_id, online=online, count_time=count_time)

    await players.report_share(share("a", "", 100, 20))
    await players.report_share(share("b", "w1", 30, 10))
    await backend.others.players.report_share(share("b", "w2", 5, 10))
    for _ in range(2):  # a repeat, and a straggler
        await backend.others.players.report_share(share("b", "w1", 999, 15))
    assert await players.players() == Players(online=135, count_time=round(now - 20, 3))
    newer = Players(online=700, count_time=round(now, 3))
    assert await players.report_players(newer, "game") == newer


async def test_only_a_newer_count_of_players_counts(backend: Backend) -> None:
    players = backend.stores.players
    assert await players.players() is None
    newer = Players(online=300, count_time=START + 10)
    assert await players.report_players(newer, "game") == newer
    older = Players(online=5, count_time=START)
    assert await backend.others.players.report_players(older, "game") == newer
    assert await players.players() == newer


async def test_one_replica_leads_and_renews(backend: Backend) -> None:
    lease, rival = backend.stores.lease, backend.others.lease
    first = await lease.acquire("a", 30.0)
    assert (first.holder, first.epoch) == ("a", 1)
    assert (await rival.acquire("b", 30.0)).holder == "a"
    renewed = await lease.acquire("a", 30.0)
    assert (renewed.holder, renewed.epoch) == ("a", 1)


async def test_a_released_or_expired_lease_changes_hands_with_a_new_epoch(backend: Backend) -> None:
    lease, rival = backend.stores.lease, backend.others.lease
    await lease.acquire("a", 30.0)
    await rival.release("b")  # not b's to give away
    assert (await rival.acquire("b", 30.0)).holder == "a"
    await lease.release("a")
    taken = await rival.acquire("b", 0.05)
    assert (taken.holder, taken.epoch) == ("b", 2)
    async with asyncio.timeout(10):
        while (back := await lease.acquire("a", 30.0)).holder != "a":  # noqa: ASYNC110 - expiry
            await asyncio.sleep(0.02)
    assert back.epoch == 3


async def test_many_replicas_at_once_elect_one(backend: Backend) -> None:
    views = await asyncio.gather(
        *(
            (backend.stores if n % 2 else backend.others).lease.acquire(f"replica-{n}", 30.0)
            for n in range(8)
        )
    )
    final = await backend.stores.lease.acquire("late", 30.0)
    assert {v.holder for v in views} <= {final.holder, ""}
    assert final.epoch == 1


async def test_a_database_that_is_away_says_so_and_comes_back(backend: Backend) -> None:
    await backend.stores.journal.save(record(0))
    backend.lose()
    try:
        with pytest.raises(DatabaseAway):
            await backend.stores.journal.save(record(1))
        with pytest.raises(DatabaseAway):
            await backend.stores.lease.acquire("a", 5.0)
        with pytest.raises(DatabaseAway):
            await backend.stores.overrides.set_override(Tier.GOLD, PIN, str(uuid.uuid4()), START)
    finally:
        backend.restore()
    async with asyncio.timeout(20):
        while True:
            try:
                await backend.stores.journal.save(record(1))
                break
            except DatabaseAway:
                await asyncio.sleep(0.05)
    assert await backend.stores.journal.get(record(1).decision_id) == record(1)


async def outbox(url: str) -> list[CapacityChangedEvent]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT event FROM autoscaler.outbox ORDER BY position")
    finally:
        await connection.close()
    events = [GameEvent.FromString(row["event"]) for row in rows]
    return [CapacityChangedEvent.FromString(event.payload) for event in events]


async def test_a_change_of_capacity_is_announced_with_its_journal_entry_and_once(
    postgres_database: str,
) -> None:
    async with open_postgres_stores(postgres_database, announces=True) as database:
        await database.migrate()
        journal = database.stores.journal
        change, steady, failed = (
            record(1, tokens=90_000),
            record(2, tokens=9_000, outcome=Outcome.NO_CHANGE),
            record(3, tokens=90_000, outcome=Outcome.FAILED),
        )
        await journal.save(replace(change, outcome=None))  # the intent tells nobody anything
        assert await outbox(postgres_database) == []
        for _ in range(3):  # an answer that was lost is asked for again
            await journal.save(change)
        await journal.save(steady)
        await journal.save(failed)
        (announced,) = await outbox(postgres_database)
        assert announced.decision_id == change.decision_id
        assert announced.desired == change.decision.desired


async def test_what_was_buffered_while_the_database_was_away_is_announced_with_its_entry(
    postgres_server: EmbeddedPostgres, postgres_database: str
) -> None:
    async with open_postgres_stores(postgres_database, announces=True) as database:
        await database.migrate()
        stores = database.stores
        buffer = BufferedJournal(stores.journal, stores.drains, limit=10, epoch=lambda: 1)
        change = record(1, tokens=90_000)
        postgres_server.kill()
        try:
            assert not await buffer.write(SaveDecision(change))
        finally:
            postgres_server.start()
        assert await buffer.flush()
        assert [event.decision_id for event in await outbox(postgres_database)] == [
            change.decision_id
        ]
        assert await stores.journal.get(change.decision_id) is not None


async def test_an_entry_whose_announcement_cannot_be_kept_is_not_kept_either(
    postgres_database: str,
) -> None:
    async with open_postgres_stores(postgres_database, announces=True) as database:
        await database.migrate()
        async with database.pool.acquire() as connection:
            await connection.execute("ALTER TABLE autoscaler.outbox ADD CHECK (position < 0)")
        change = record(1, tokens=90_000)
        with pytest.raises(asyncpg.CheckViolationError):
            await database.stores.journal.save(change)
        assert await database.stores.journal.get(change.decision_id) is None
