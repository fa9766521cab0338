"""A replica that does jobs on worlds in small steps and says each one, until it is killed.

After as many steps as its last argument says, it stands still: whoever kills it then need not be
quicker than the rest of the job. With 0 it goes on to the end.
"""

import asyncio
import sys
import uuid
from datetime import timedelta

from knowledge_base.__main__ import connect
from knowledge_base.adapters.postgres_worlds import PostgresWorlds
from knowledge_base.config import DatabaseSettings
from knowledge_base.domain.worlds import Job
from knowledge_base.world_jobs import WorldJobs
from servicekit.clock import SystemClock
from servicekit.settings import load_settings


class TellingWorlds(PostgresWorlds):
    """Says each step on standard output once it is committed."""

    steps_left = 0

    async def advance(self, job_id: uuid.UUID, holder: uuid.UUID) -> Job:
        """Does one step."""
        job = await super().advance(job_id, holder)
        print(job.done_rows, flush=True)  # this is how the test follows it
        self.steps_left -= 1
        if self.steps_left == 0:
            await asyncio.Event().wait()
        return job


async def main(url: str, step_rows: int, lease_seconds: float, steps: int) -> None:
    """Works until it is killed."""
    settings = load_settings(DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": url})
    async with connect(settings) as database:
        worlds = TellingWorlds(
            database, step_rows=step_rows, lease=timedelta(seconds=lease_seconds)
        )
        worlds.steps_left = steps
        await WorldJobs(
            worlds,
            SystemClock(),
            forgetful=(),
            change_retention=timedelta(days=7),
            backup_retention=timedelta(days=7),
        ).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
