"""Processes killed with SIGKILL between any two steps: every event takes effect, and once.

The whole way is real: a deed and its event in one transaction, the relay, SNS, SQS, the consumer,
inbox and effect in one transaction, the deletion from the queue. SNS and SQS are the strict bus,
which is reached over the network like AWS and here delivers a third of the messages twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from messaging.testing.stores import open_stores
from messaging.testing.strict_aws import StrictAws, StrictQueue

WORKER = Path(__file__).with_name("messaging_crash_worker.py")
ANSWER_SECONDS = 60.0
QUIET_SECONDS = 60.0


class Workers:
    """The worker program, ready to fork processes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def obey(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            return json.loads(await self._process.stdout.readline())

    async def run(self, role: str, **order: Any) -> list[str]:
        """Runs a process to its end and returns the moments it reached."""
        answer = await self.obey(role=role, **order)
        assert "reached" in answer, f"{role}: {answer}, see its standard error"
        return list(answer["reached"])

    async def kill(self, role: str, moment: str, **order: Any) -> None:
        """Runs a process to its death at `moment`."""
        answer = await self.obey(role=role, die_at=moment, **order)
        assert answer == {"died": True}, f"{role} did not reach {moment!r}: {answer}"


class Way:
    """One event's way: what was done, and what took effect."""

    def __init__(self, pool: asyncpg.Pool, workers: Workers, queue: StrictQueue) -> None:
        self.pool = pool
        self.workers = workers
        self._queue = queue

    async def effects(self) -> Counter[int]:
        rows = await self.pool.fetch("SELECT number FROM game.effects")
        return Counter(row["number"] for row in rows)

    async def deeds(self) -> set[int]:
        rows = await self.pool.fetch("SELECT number FROM game.deeds")
        return {row["number"] for row in rows}

    async def drain(self) -> None:
        """Returns once undisturbed processes have brought everything to its end."""
        relay = (await self.workers.obey(role="relay", keep_on=True))["pid"]
        consumer = (await self.workers.obey(role="consumer", keep_on=True))["pid"]
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                while not await self._empty():  # noqa: ASYNC110  # other processes work on it
                    await asyncio.sleep(0.1)
        finally:
            for pid in (relay, consumer):
                os.kill(pid, signal.SIGKILL)
                await self.workers.obey(reap=pid)

    async def _empty(self) -> bool:
        waiting = await self.pool.fetchval("SELECT count(*) FROM game.outbox")
        return not waiting and not len(self._queue.state)

    async def check(self) -> None:
        """Asserts that each deed took effect, and once, and that nothing else did."""
        effects = await self.effects()
        assert set(effects) == await self.deeds()
        assert max(effects.values()) == 1
        assert await self.pool.fetchval("SELECT count(*) FROM game.outbox_parked") == 0


@asynccontextmanager
async def opened_way(database_url: str, *, visibility_seconds: int = 1) -> AsyncIterator[Way]:
    async with StrictAws() as aws, open_stores(database_url) as pool:
        aws.duplicate_share = 0.33
        queue = aws.add_queue("events", visibility_seconds=visibility_seconds)
        aws.subscribe(queue)
        await pool.execute(
            "CREATE TABLE game.deeds (number integer PRIMARY KEY, event_id text NOT NULL);"
            "CREATE TABLE game.effects (number integer NOT NULL)"
        )
        where = {
            "database_url": database_url,
            "endpoint_url": aws.endpoint,
            "topic_arn": aws.topic_arn,
            "queue_url": queue.url,
            "visibility_seconds": visibility_seconds,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(WORKER),
            json.dumps(where),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"},
        )
        try:
            yield Way(pool, Workers(process), queue)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(ANSWER_SECONDS):
                await process.wait()


async def test_a_kill_at_the_worst_moments_costs_no_event_and_doubles_none(
    postgres_database: str,
) -> None:
    async with opened_way(postgres_database) as way:
        await way.workers.kill("producer", "before COMMIT;", numbers=[1])
        assert await way.deeds() == set()
        await way.workers.run("producer", numbers=[1, 2])
        await way.workers.kill("relay", "after publish")  # accepted, not written down
        await way.workers.kill("consumer", "before COMMIT;")  # effect made, not committed
        await way.workers.kill("relay", "before COMMIT;")  # published again, again not written down
        await way.workers.kill("consumer", "after COMMIT;")  # committed, message not deleted
        await way.drain()
        await way.check()
        assert await way.deeds() == {1, 2}


STEPS = {
    "producer": ["BEGIN;", "INSERT INTO game.deeds", "INSERT INTO game.outbox", "COMMIT;"],
    "relay": ["BEGIN;", "WITH taken", "publish", "DELETE FROM game.outbox", "COMMIT;"],
    "consumer": [
        "receive",
        "BEGIN;",
        "INSERT INTO game.inbox",
        "INSERT INTO game.effects",
        "COMMIT;",
        "delete from the queue",
    ],
}


@pytest.mark.endurance
@pytest.mark.parametrize("role", list(STEPS))
async def test_a_kill_between_any_two_steps_costs_no_event_and_doubles_none(
    postgres_database: str, role: str
) -> None:
    async with opened_way(postgres_database) as way:
        workers = way.workers

        async def prepare(number: int) -> None:
            """Brings an event to where the role meets it."""
            if role != "producer":
                await workers.run("producer", numbers=[number])
            if role == "consumer":
                await workers.run("relay")

        await prepare(0)
        moments = await workers.run(role, numbers=[0])
        for step in STEPS[role]:
            for side in ("before", "after"):
                assert any(moment.startswith(f"{side} {step}") for moment in moments), moments
        for number, moment in enumerate(moments, start=1):
            await prepare(number)
            await workers.kill(role, moment, numbers=[number])
            if role == "producer":
                # Whoever asked for the deed got no answer, and asks again.
                await workers.run("producer", numbers=[number])
        await way.drain()
        await way.check()
        assert await way.deeds() == set(range(len(moments) + 1))


@pytest.mark.endurance
@pytest.mark.parametrize("seed", range(2))
async def test_kills_at_random_moments_with_everything_running_at_once(
    postgres_database: str, seed: int
) -> None:
    """Two of each role; every 20 to 600 ms one of them is killed and replaced.

    The queue delivers again what a dead consumer held.
    """
    rng = random.Random(seed)  # noqa: S311  # a repeatable run, no secret
    kills = 30
    async with opened_way(postgres_database, visibility_seconds=5) as way:

        async def start(role: str, number: int) -> tuple[str, int]:
            numbers = list(range(number * 1_000, number * 1_000 + 1_000))
            order = {"numbers": numbers, "pause_seconds": 0.02}
            return role, (await way.workers.obey(role=role, keep_on=True, **order))["pid"]

        running = [
            await start(role, number)
            for number, role in enumerate(["producer", "relay", "consumer"] * 2)
        ]
        try:
            for number in range(kills):
                await asyncio.sleep(rng.uniform(0.02, 0.6))  # real: other processes work meanwhile
                role, pid = running.pop(rng.randrange(len(running)))
                os.kill(pid, signal.SIGKILL)
                await way.workers.obey(reap=pid)
                running.append(await start(role, number + 10))
        finally:
            for _, pid in running:
                os.kill(pid, signal.SIGKILL)
                await way.workers.obey(reap=pid)
        assert await way.effects(), "nothing took effect between the kills"
        await way.drain()
        await way.check()
