"""What was erased is in no backup any more when `EraseWorld` said so, on a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gamekeeper.backup.repository import BaseBackup, Repository
from gamekeeper.backup.retention import erased_data
from gamekeeper.cli import app
from knowledge_base.config import DatabaseSettings
from servicekit.settings import load_settings

CANARY = "canaryquillon"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
#: The schedule of docs/backup.md: base backup at 02:00, prune at 03:00, 30 days kept.
KEPT = 30 * DAY
BACKUP_LASTS = timedelta(minutes=10)


@dataclass
class Operated:
    """A server whose log has a segment an hour, and a repository that is kept by a schedule.

    Its base backups and log segments hold the canary where the server did while they were written.
    """

    repository: Repository
    hours_between_backups: int = 24
    prune_at_hour: int = 3
    backup_at_hour: int = 2
    backups_end: datetime | None = None
    now: datetime = BEGIN
    erased: datetime | None = None
    line: str = field(init=False)

    def __post_init__(self) -> None:
        self.line = self.repository.begin_wal_line()

    def run_until(self, moment: datetime) -> None:
        """Lets the hours pass, each with what falls into it."""
        while self.now < moment:
            hour = round((self.now - BEGIN) / HOUR)
            segment = self.repository.wal_directory(self.line) / f"00000001{hour:016X}"
            segment.write_text(self.content)
            taken = self.backups_end is None or self.now < self.backups_end
            if taken and (hour - self.backup_at_hour) % self.hours_between_backups == 0:
                add_backup(self.repository, self.now, self.content, hour, self.line)
            if hour % 24 == self.prune_at_hour:
                self.repository.prune(self.now - KEPT)
            self.now += HOUR

    @property
    def content(self) -> str:
        """What is in the server's pages now."""
        return CANARY if self.erased is None or self.now < self.erased else "nothing"

    def holds_canary(self) -> bool:
        files = (path for path in self.repository.path.rglob("*") if path.is_file())
        return any(CANARY in path.read_text() for path in files)


def add_backup(
    repository: Repository, start: datetime, content: str, segment: int = 0, line: str = "0001"
) -> None:
    name = start.strftime("%Y%m%dT%H%M%S.%fZ")
    repository.directory_of(name).mkdir(parents=True)
    (repository.directory_of(name) / "base.tar.gz").write_text(content)
    repository.record(
        BaseBackup(
            name=name,
            system_identifier="1",
            postgres_version=180004,
            user="gamekeeper_backup",
            start_time=start,
            stop_time=start + BACKUP_LASTS,
            start_wal=f"{segment:016X}",
            wal_line=line,
            size_bytes=1,
            restore_point="",
            contents={},
        )
    )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "backups")


def told_after_erasure() -> timedelta:
    environ = {"KNOWLEDGE_BASE_DATABASE_URL": "postgresql://u:p@localhost/k"}
    return timedelta(days=load_settings(DatabaseSettings, environ).backup_retention_days)


@pytest.mark.parametrize("prune_at_hour", [1, 3])
@pytest.mark.parametrize("erased_at_hour", [0, 3, 14])
@pytest.mark.parametrize("days_between_backups", [1, 7])
def test_what_was_erased_is_gone_by_the_days_kept_between_backups_and_between_prunes(
    repository: Repository, prune_at_hour: int, erased_at_hour: int, days_between_backups: int
) -> None:
    operated = Operated(
        repository,
        hours_between_backups=24 * days_between_backups,
        prune_at_hour=prune_at_hour,
        erased=BEGIN + 40 * DAY + erased_at_hour * HOUR,
    )
    assert operated.erased is not None
    operated.run_until(operated.erased)
    assert operated.holds_canary()
    operated.run_until(operated.erased + KEPT + days_between_backups * DAY + DAY)
    assert not operated.holds_canary()
    # Every moment of the days kept can be restored nevertheless.
    assert repository.newest_before(operated.now - KEPT)


def test_the_days_kept_alone_would_be_a_promise_that_does_not_hold(repository: Repository) -> None:
    operated = Operated(repository, erased=BEGIN + 40 * DAY + 3 * HOUR)
    operated.run_until(BEGIN + 40 * DAY + 3 * HOUR + KEPT + 23 * HOUR)
    assert operated.holds_canary()


def test_the_default_told_to_erasers_holds_for_the_schedule_of_the_documentation(
    repository: Repository,
) -> None:
    operated = Operated(repository, erased=BEGIN + 40 * DAY + 3 * HOUR)
    operated.run_until(BEGIN + 40 * DAY + 3 * HOUR + told_after_erasure())
    assert not operated.holds_canary()


def test_without_another_base_backup_nothing_is_ever_gone_and_that_is_told(
    repository: Repository,
) -> None:
    operated = Operated(
        repository, erased=BEGIN + 40 * DAY + 3 * HOUR, backups_end=BEGIN + 41 * DAY
    )
    operated.run_until(BEGIN + 100 * DAY)
    assert operated.holds_canary()
    for days, overdue in ((41, False), (45, False), (46, True), (100, True)):
        told = erased_data(
            repository.backups(), BEGIN + days * DAY, keep=KEPT, told=told_after_erasure()
        )
        assert told is not None
        assert told.overdue is overdue


def test_the_moment_told_is_when_the_schedule_removes_it(repository: Repository) -> None:
    operated = Operated(repository)
    operated.run_until(BEGIN + 40 * DAY + 3 * HOUR)
    operated.erased = operated.now
    told = erased_data(repository.backups(), operated.now, keep=KEPT, told=told_after_erasure())
    assert told is not None
    assert told.between_backups == DAY
    assert told.gone_time == BEGIN + 41 * DAY + 2 * HOUR + BACKUP_LASTS + KEPT
    operated.run_until(told.gone_time - DAY + 2 * HOUR)  # with the prune before
    assert operated.holds_canary()
    operated.run_until(told.gone_time + 2 * HOUR)  # with the prune after
    assert not operated.holds_canary()


def test_of_no_backups_there_is_nothing_to_tell() -> None:
    assert erased_data([], BEGIN, keep=KEPT, told=KEPT) is None


@pytest.mark.parametrize("command", ["list", "prune"])
def test_an_operator_is_told_how_long_erased_data_stays_and_when_a_backup_is_overdue(
    repository: Repository, command: str
) -> None:
    def told(**environ: str) -> str:
        words = ["backup", command, str(repository.path), "--keep-days", "10"]
        result = CliRunner(env=environ).invoke(app, words)
        assert result.exit_code == 0, result.output
        return result.output

    now = datetime.now(UTC)
    add_backup(repository, now - 5 * DAY, "")
    add_backup(repository, now - 3 * DAY, "")
    # The last came two days after the one before; the third day there is none.
    assert "until a prune 10 days after the next base backup" in told()
    assert "warning" not in told(KNOWLEDGE_BASE_BACKUP_RETENTION_DAYS="14")
    assert "longer than the 12 days told" in told(KNOWLEDGE_BASE_BACKUP_RETENTION_DAYS="12")
    add_backup(repository, now - HOUR, "")
    gone = (now - HOUR + BACKUP_LASTS + 3 * DAY - HOUR + 10 * DAY).isoformat(timespec="minutes")
    assert f"until a prune after {gone}" in told()
    assert "warning" not in told(KNOWLEDGE_BASE_BACKUP_RETENTION_DAYS="12")
