"""`python -m messaging.parked`: what an operator does about events that could not leave."""

from __future__ import annotations

import os
import subprocess
import sys

from messaging.errors import EventTooLarge
from messaging.testing.stores import RecordingPublisher, event, fill, open_stores, relay_on


def parked(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "messaging.parked", *arguments],
        env={"PATH": os.environ["PATH"], "GAME_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_parked_events_are_listed_and_go_back_in_line(module_database: str) -> None:
    giants = [event(number) for number in range(3)]
    topic = RecordingPublisher(lambda _: EventTooLarge("too large\x1b[2J\nfor it"))
    async with open_stores(module_database) as pool:
        relay = relay_on(pool, topic)
        await fill(pool, *giants)
        await relay.relay_batch()

        title, *lines = parked(module_database, "list", "game").stdout.splitlines()
        assert title == "parked\ttries\tevent id\treason"
        assert [line.split("\t")[1:] for line in lines] == [
            ["0", giant.event_id, "EVENT_TOO_LARGE: too large\ufffd[2J\ufffdfor it"]
            for giant in giants
        ]

        some = parked(module_database, "requeue", "game", "--limit", "2")
        assert (some.returncode, some.stdout) == (0, "2 events are back in line\n")
        topic.refusal = None
        await relay.relay_batch()
        assert topic.accepted == giants[:2]
        assert parked(module_database, "requeue", "game").stdout == "1 event is back in line\n"


def test_what_is_wrong_is_told_without_a_traceback(module_database: str) -> None:
    nobody = parked("postgresql://nobody@127.0.0.1:9/nothing", "list", "game")
    assert (nobody.returncode, nobody.stderr) == (
        1,
        "The database cannot be reached; try again in a moment.\n",
    )
    unknown = subprocess.run(
        [sys.executable, "-m", "messaging.parked", "list", "nothing"],
        env={"PATH": os.environ["PATH"], "NOTHING_DATABASE_URL": module_database},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("the database refused: relation")
    assert "Traceback" not in unknown.stderr
