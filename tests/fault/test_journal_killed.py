"""A journal whose process is killed between any two steps on the disk loses nothing it promised."""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpu_metrics.adapters.event_journal_file import open_journal
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent

CRASHER = Path(__file__).with_name("journal_crasher.py")
BOUND = 3


def xid(code: int = 31) -> ObservedEvent:
    return ObservedEvent(
        kind=GpuEventKind.XID,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        gpu_uuid="GPU-a",
        xid=code,
    )


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("kill", marks=pytest.mark.endurance),
        pytest.param("tear", marks=pytest.mark.endurance),
        "power",
    ],
)
async def test_killed_at_any_step_nothing_acknowledged_is_lost(tmp_path: Path, mode: str) -> None:
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(CRASHER), str(tmp_path), mode],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    steps = [json.loads(line) for line in ran.stdout.splitlines() if line[:1] == "{"]
    # Opening, nine appends and two compactions are more steps than that.
    assert len(steps) > 25
    for step in steps:
        promised = [event for _, events in step["acknowledged"] for event in events]
        left = step["left"]["events"]
        assert {journal for journal, _ in step["acknowledged"]} <= {step["left"]["journal_id"]}
        # What was promised is there, unless the bound gave it up, and means the same.
        oldest = left[0][0]
        assert [event for event in promised if event[0] >= oldest] == [
            event for event in left if event[0] <= len(promised)
        ], step
        assert len(left) <= BOUND
        assert oldest == 1 or len(left) == BOUND
        # At most one append that nobody was told of survives, of at most two events.
        assert left[-1][0] - 1 - len(promised) in (0, 1, 2)
        # The count of the last code goes on across the crash.
        last = left[-1]
        counted = [event for event in promised if event[1] == last[1]]
        assert last[2] > (counted[-1][2] if counted else 0)


async def test_xid_counts_survive_restarts_and_compaction(tmp_path: Path) -> None:
    for run in range(1, 12):
        journal, file = open_journal(tmp_path, bound=BOUND)
        (event,) = await journal.append([xid()])
        assert (event.sequence, event.xid_count) == (run, run)
        assert journal.xid_counts.last_codes == {"GPU-a": 31}
        file.close()


async def test_xids_are_counted_anew_after_the_machine_started_again(tmp_path: Path) -> None:
    for machine, wanted in (("one", 1), ("one", 2), ("other", 1), ("other", 2)):
        journal, file = open_journal(tmp_path, bound=BOUND, machine_boot_id=machine)
        (event,) = await journal.append([xid()])
        assert event.xid_count == wanted
        file.close()
    journal, file = open_journal(tmp_path, bound=BOUND, machine_boot_id="other")
    # The events themselves go on.
    batch = journal.next_batch({}, 10)
    assert batch is not None
    assert [each.sequence for each in batch.events] == [2, 3, 4]
    file.close()


async def test_what_was_acknowledged_before_a_restart_is_not_counted_as_lost(
    tmp_path: Path,
) -> None:
    journal, file = open_journal(tmp_path, bound=BOUND)
    await journal.append([xid(), xid(), xid()])
    journal.acknowledge(journal.journal_id, 3)
    await journal.append([xid()])
    file.close()
    journal, file = open_journal(tmp_path, bound=BOUND)
    await journal.append([xid(), xid(), xid()])
    # 1 to 4 are given up by now, and 4 alone was never acknowledged.
    assert journal.lost_events == 1
    file.close()


async def test_damage_before_the_end_begins_another_journal(tmp_path: Path) -> None:
    journal, file = open_journal(tmp_path)
    for _ in range(4):
        await journal.append([xid()])
    file.close()
    path = tmp_path / "events.journal"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with capture_logs() as logs:
        other, file = open_journal(tmp_path)
    assert [entry["event"] for entry in logs] == ["journal_damaged"]
    assert other.journal_id != journal.journal_id
    assert other.next_batch({}, 10) is None
    assert (tmp_path / "events.damaged").read_bytes() == data
    file.close()


async def test_a_journal_is_written_by_one_agent_at_a_time(tmp_path: Path) -> None:
    _, file = open_journal(tmp_path)
    with pytest.raises(OSError, match="temporarily unavailable"):
        open_journal(tmp_path)
    file.close()
    _, file = open_journal(tmp_path)
    file.close()
