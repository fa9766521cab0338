"""Parked events, for operators: `python -m messaging.parked list|requeue SCHEMA`.

Parked events lie in the database of the service that wrote them, which only that service's own
address reaches. So this runs where the service runs, with its environment: for the schema
`autoscaler` the address is taken from AUTOSCALER_DATABASE_URL.

Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Sequence

import asyncpg

from messaging.outbox import parked_events, requeue_parked
from servicekit.postgres import DatabaseAway, database_errors

__all__ = ["main"]

_CONNECT_SECONDS = 10.0
_STATEMENT_SECONDS = 60.0
_FAILED, _USAGE = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 1 failed, 2 asked for wrongly."""
    arguments = _arguments(argv)
    variable = f"{arguments.schema.upper()}_DATABASE_URL"
    url = os.environ.get(variable)
    if not url:
        print(f"{variable} is not set: run this with the service's environment", file=sys.stderr)
        return _USAGE
    try:
        with database_errors():
            asyncio.run(_run(arguments, url))
    except DatabaseAway as error:
        print(error.message, file=sys.stderr)
    except asyncpg.PostgresError as error:
        print(f"the database refused: {error}", file=sys.stderr)
    else:
        return 0
    return _FAILED


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m messaging.parked",
        description="Events that a service could not publish and set aside. Remove the cause "
        "first: an event that is requeued too early is parked again.",
    )
    parser.add_argument("command", choices=("list", "requeue"), help="the oldest events first")
    parser.add_argument("schema", type=_schema, help="of the service: autoscaler, knowledge_base")
    parser.add_argument(
        "--limit", type=_positive, default=1000, help="at most so many events (default: 1000)"
    )
    return parser.parse_args(argv)


def _schema(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", text):
        raise argparse.ArgumentTypeError("must be a plain lower-case name")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a number from 1")
    return int(text)


async def _run(arguments: argparse.Namespace, url: str) -> None:
    connection = await asyncpg.connect(
        url, timeout=_CONNECT_SECONDS, command_timeout=_STATEMENT_SECONDS
    )
    try:
        if arguments.command == "requeue":
            count = await requeue_parked(connection, schema=arguments.schema, limit=arguments.limit)
            print(f"{count} {'event is' if count == 1 else 'events are'} back in line")
            return
        events = await parked_events(connection, schema=arguments.schema, limit=arguments.limit)
        print("parked\ttries\tevent id\treason")
        for event in events:
            moment = event.park_time.isoformat(timespec="seconds")
            print(f"{moment}\t{event.attempts}\t{_plain(event.event_id)}\t{_plain(event.reason)}")
    finally:
        await connection.close(timeout=_CONNECT_SECONDS)


def _plain(text: str) -> str:
    """Nothing that a terminal would act upon, or that would look like another column."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


if __name__ == "__main__":
    sys.exit(main())
