"""`gamekeeper world archive|fork|export|import|erase|jobs` against a real knowledge base."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gamekeeper.cli import app
from gamekeeper.world_files import NotAWorldFileError, read_header, read_records
from gaming.knowledge_base.v1 import story_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base

TIMEOUT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class CommandLine:
    running: RunningKnowledgeBase

    async def run(self, *arguments: str, typed: str = "") -> Result:
        command = ["--knowledge-base", self.running.address, "world", *arguments]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, command, input=typed))

    async def json(self, *arguments: str) -> Any:
        result = await self.run(*arguments, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
async def line(knowledge_base_database: str) -> AsyncIterator[CommandLine]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        made = await running.stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="Hollowmere", request_id=str(uuid.uuid4())),
            timeout=TIMEOUT_SECONDS,
        )
        await running.stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=made.world.world_id,
                events=[story_pb2.StoryEvent(text=f"Mara rang {n}") for n in range(3)],
                request_id=str(uuid.uuid4()),
            ),
            timeout=TIMEOUT_SECONDS,
        )
        yield CommandLine(running)


async def test_a_world_is_exported_erased_and_imported_again(
    line: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "hollowmere.world"
    told = await line.json("export", "Hollowmere", str(file))
    assert told["rowCounts"]["story_events"] == "3"
    assert file.exists()
    assert not file.with_name("hollowmere.world.partial").exists()
    before = (await line.run("events", "Hollowmere")).stdout

    refused = await line.run("erase", "Hollowmere", typed="n\n")
    assert refused.exit_code == 1
    assert "3 events" in refused.stderr
    erased = await line.run("erase", "Hollowmere", "--yes")
    assert erased.exit_code == 0, erased.output
    assert "erase succeeded" in erased.stdout
    assert "backups may hold it until" in erased.stdout
    assert (await line.run("show", "Hollowmere")).exit_code != 0

    back = await line.run("import", str(file), "--keep-id")
    assert back.exit_code == 0, back.output
    assert (await line.run("events", "Hollowmere")).stdout == before


async def test_a_fork_is_waited_for_and_listed(line: CommandLine) -> None:
    made = await line.run("fork", "Hollowmere", "Retold", "--before", "2000-01-01T00:00:00")
    assert "fork succeeded" in made.stdout
    assert "nothing has happened yet" in (await line.run("events", "Retold")).stdout
    listed = await line.run("jobs")
    assert "fork" in listed.stdout
    assert "succeeded" in listed.stdout


async def test_an_archived_world_refuses_a_record_until_it_is_unarchived(
    line: CommandLine,
) -> None:
    assert "is read-only" in (await line.run("archive", "Hollowmere")).stdout
    refused = await line.run("record", "Hollowmere", "too late")
    assert refused.exit_code != 0
    assert "archived" in refused.stderr
    assert "is written to again" in (await line.run("unarchive", "Hollowmere")).stdout
    assert (await line.run("record", "Hollowmere", "in time")).exit_code == 0


async def test_a_file_that_is_no_whole_world_is_refused(line: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "hollowmere.world"
    await line.json("export", "Hollowmere", str(file))
    whole = file.read_bytes()
    cut = tmp_path / "cut.world"
    cut.write_bytes(whole[:-10])
    refused = await line.run("import", str(cut), "--name", "Cut")
    assert refused.exit_code != 0
    assert "cut" in refused.stderr
    other = tmp_path / "other"
    other.write_text("no world")
    assert "holds no exported world" in (await line.run("import", str(other))).stderr
    with pytest.raises(NotAWorldFileError):
        read_header(other)
    assert next(read_records(file)).header.name == "Hollowmere"
    assert [row["name"] for row in (await line.json("list"))["worlds"]] == ["Hollowmere"]
