"""Exports whole worlds and takes them in."""

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from knowledge_base.domain.memory import NewEvent
from knowledge_base.domain.requests import fingerprint
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.domain.world_errors import (
    InvalidWorldRecords,
    TooManyExports,
    WorldChanged,
)
from knowledge_base.domain.world_records import (
    FIRST_LINK,
    FORMAT_VERSION,
    RecordChecker,
    WorldHeader,
    WorldRow,
    WorldTrailer,
    next_link,
)
from knowledge_base.ports import Embedder, RequestKey
from knowledge_base.ports_worlds import WorldExport, WorldImport, WorldRecordStore
from servicekit.clock import Clock
from servicekit.errors import ResumeTokenTooOld, ServiceError

__all__ = ["ExportStep", "ImportOrder", "ImportedWorld", "Record", "WorldRecords"]

log = structlog.get_logger(__name__)

# Each holds a connection, and an export a transaction, for as long as its caller takes.
_AT_ONCE = 2
_ROWS_AT_ONCE = 500
_MESSAGE_BYTES = 400_000
_EMBEDDED_AT_ONCE = 64
_EVENTS = "story_events"
_GIVE_UP_SECONDS = 5.0

Record = WorldHeader | tuple[str, list[WorldRow]] | WorldTrailer


@dataclass(frozen=True, slots=True)
class ExportStep:
    """One record of an export and how far it is; `token` goes on after it."""

    token: str
    record: Record
    sent_rows: int
    total_rows: int


@dataclass(frozen=True, slots=True)
class ImportOrder:
    """How a world is taken in; an empty name means as it was."""

    name: str
    keep_world_id: bool


@dataclass(frozen=True, slots=True)
class ImportedWorld:
    """What an import made."""

    world_id: uuid.UUID
    job_id: uuid.UUID
    imported_rows: int
    embedded_texts: int


@dataclass(frozen=True, slots=True)
class _Position:
    """How far an export is, and of which state of the world.

    Attributes:
        table: index of the table whose rows come next.
        after: key of the last row sent of it.
        link: the checksum's chain so far.
        counts: rows sent by table.
    """

    incarnation: str
    change: int
    table: int = 0
    after: str | None = None
    link: bytes = FIRST_LINK
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def sent(self) -> int:
        return sum(self.counts.values())

    def token(self) -> str:
        content = [
            self.incarnation,
            self.change,
            self.table,
            self.after,
            self.link.hex(),
            self.counts,
        ]
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()

    @classmethod
    def of(cls, token: str, table_count: int) -> "_Position":
        """Reads a token. Raises ResumeTokenTooOld when it is none of ours."""
        try:
            incarnation, change, table, after, link, counts = json.loads(
                base64.urlsafe_b64decode(token)
            )
            position = cls(
                str(incarnation),
                int(change),
                int(table),
                None if after is None else str(after),
                bytes.fromhex(link),
                {str(name): int(count) for name, count in counts.items()},
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            position = None
        if position is None or not 0 <= position.table <= table_count or len(position.link) != 32:
            raise ResumeTokenTooOld("The token is not one of an export; start the export anew.")
        return position


class WorldRecords:
    """Exports and imports.

    Args:
        new_id: makes the ids of worlds and jobs.
    """

    def __init__(
        self,
        store: WorldRecordStore,
        embedder: Embedder,
        clock: Clock,
        *,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._clock = clock
        self._new_id = new_id
        self._running = 0

    async def export(
        self, world_id: uuid.UUID, resume_token: str
    ) -> AsyncGenerator[ExportStep, None]:
        """Yields everything a world holds, as it was at the first step.

        Raises:
            WorldNotFound: there is no such world.
            WorldChanged: the world is not any more as it was when the token was given.
            ResumeTokenTooOld: the token is not one of an export.
            TooManyExports: as many run as this process takes.
        """
        self._begin()
        try:
            async with self._store.exporting(world_id) as world:
                position = _Position(world.log.incarnation.hex, world.log.newest)
                if resume_token:
                    known = _Position.of(resume_token, len(world.tables))
                    if (known.incarnation, known.change) != (position.incarnation, position.change):
                        raise WorldChanged(
                            "The world has changed since this export began; start it anew, or "
                            "archive the world first."
                        )
                    position = known
                async with aclosing(
                    self._records(world, position, first=not resume_token)
                ) as steps:
                    async for step in steps:
                        yield step
        finally:
            self._running -= 1

    async def import_world(
        self, request_id: uuid.UUID, order: ImportOrder, records: AsyncIterator[Record]
    ) -> ImportedWorld:
        """Takes in a world that was exported, all of it or nothing.

        Raises:
            InvalidWorldRecords: the records are not those of a whole export, or do not fit here.
            WorldNameTaken, WorldIdTaken: rename the world, or let it get a new id.
            JobTakenAway: it was cancelled, or the caller was silent for too long.
            TooManyExports: as many run as this process takes.
        """
        self._begin()
        try:
            return await self._import(request_id, order, records)
        finally:
            self._running -= 1

    async def _records(
        self, world: WorldExport, position: _Position, *, first: bool
    ) -> AsyncGenerator[ExportStep, None]:
        total = sum(count for _, count in world.tables)
        if first:
            header = WorldHeader(
                FORMAT_VERSION,
                world.world.world_id,
                world.world.name,
                world.world.description,
                world.world.create_time,
                self._clock.now(),
                self._embedder.model,
                world.shared_concepts,
                total,
            )
            yield ExportStep(position.token(), header, 0, total)
        while position.table < len(world.tables):
            table, _ = world.tables[position.table]
            found = await world.rows(table, position.after, _ROWS_AT_ONCE)
            for part in _parts(found):
                link = position.link
                for _, row in part:
                    link = next_link(link, table, row)
                count = position.counts.get(table, 0) + len(part)
                position = replace(
                    position,
                    after=part[-1][0],
                    link=link,
                    counts={**position.counts, table: count},
                )
                rows = [row for _, row in part]
                yield ExportStep(position.token(), (table, rows), position.sent, total)
            if len(found) < _ROWS_AT_ONCE:
                position = replace(position, table=position.table + 1, after=None)
        trailer = WorldTrailer(position.counts, position.link)
        yield ExportStep(position.token(), trailer, position.sent, total)

    async def _import(
        self, request_id: uuid.UUID, order: ImportOrder, records: AsyncIterator[Record]
    ) -> ImportedWorld:
        header = await anext(records, None)
        if not isinstance(header, WorldHeader):
            raise InvalidWorldRecords("The first record of an import must be the header.")
        if header.format_version > FORMAT_VERSION:
            raise InvalidWorldRecords(
                f"The export is of format {header.format_version}; this version reads formats up "
                f"to {FORMAT_VERSION}."
            )
        name = normalise_name("name", order.name or header.name)
        check_text("header.description", header.description)
        key = RequestKey(
            request_id,
            fingerprint(
                "ImportWorld",
                {
                    "name": name,
                    "keep_world_id": order.keep_world_id,
                    "world": str(header.world_id),
                    "export_time": header.export_time.isoformat(),
                },
            ),
            self._clock.now(),
        )
        known = await self._store.imported(key)
        if known is not None:
            return ImportedWorld(*known)
        making = await self._store.begin_import(
            key,
            self._new_id(),
            header.world_id if order.keep_world_id else self._new_id(),
            header,
            name=name,
        )
        try:
            imported, embedded = await self._take_rows(making, header, records)
            await making.finish(key, embedded)
        except BaseException as error:
            reason = error.reason if isinstance(error, ServiceError) else "IMPORT_BROKEN_OFF"
            # Also when the caller left: what was made is removed now and not when a lease runs out.
            await asyncio.shield(_give_up(making, reason))
            raise
        return ImportedWorld(making.world_id, making.job_id, imported, embedded)

    async def _take_rows(
        self, making: WorldImport, header: WorldHeader, records: AsyncIterator[Record]
    ) -> tuple[int, int]:
        checker = RecordChecker()
        imported = embedded = 0
        anew = header.embedding_model != self._embedder.model
        async for record in records:
            if isinstance(record, WorldHeader):
                raise InvalidWorldRecords("The header comes once, first.")
            if isinstance(record, WorldTrailer):
                checker.finish(header, record)
                if await anext(records, None) is not None:
                    raise InvalidWorldRecords("Nothing follows the trailer of an export.")
                return imported, embedded
            table, rows = record
            checker.take(table, rows)
            for start in range(0, len(rows), _EMBEDDED_AT_ONCE if anew else len(rows)):
                batch = rows[start : start + _EMBEDDED_AT_ONCE] if anew else rows
                if anew and any(row.vectors for row in batch):
                    batch = await self._embedded(table, batch)
                    embedded += len(batch)
                imported += await making.add(table, batch, self._embedder.model)
        raise InvalidWorldRecords("The export ends without its trailer; it was cut.")

    async def _embedded(self, table: str, rows: list[WorldRow]) -> list[WorldRow]:
        """Returns rows of events with vectors of this service's model."""
        if table != _EVENTS:
            raise InvalidWorldRecords("Only events have vectors that can be made anew.")
        columns = [_event_columns(row) for row in rows]
        vectors = await self._embedder.embed_documents(
            [
                NewEvent.of(each["text"], participants=tuple(each["participants"])).search_text
                for each in columns
            ]
        )
        return [
            WorldRow(
                json.dumps({**each, "embedding_model": self._embedder.model}),
                {"embedding": vector.astype("<f4").tobytes()},
            )
            for each, vector in zip(columns, vectors, strict=True)
        ]

    def _begin(self) -> None:
        if self._running >= _AT_ONCE:
            raise TooManyExports("Other worlds are being exported or imported; try again later.")
        self._running += 1


def _parts(
    found: list[tuple[str, WorldRow]],
) -> list[list[tuple[str, WorldRow]]]:
    """Splits rows so that each part fits into a message."""
    parts: list[list[tuple[str, WorldRow]]] = []
    size = _MESSAGE_BYTES
    for key, row in found:
        row_bytes = len(row.columns_json.encode()) + sum(map(len, row.vectors.values()))
        if size + row_bytes > _MESSAGE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append((key, row))
        size += row_bytes
    return parts


def _event_columns(row: WorldRow) -> dict[str, Any]:
    try:
        columns = json.loads(row.columns_json)
        valid = isinstance(columns["text"], str) and all(
            isinstance(name, str) for name in columns["participants"]
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        valid = False
    if not valid:
        raise InvalidWorldRecords("An event's row has no text or no participants.")
    return dict(columns)


async def _give_up(making: WorldImport, reason: str) -> None:
    try:
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            await making.give_up(reason)
    except (ServiceError, TimeoutError):
        log.warning("import_left_to_its_lease", job_id=str(making.job_id), reason=reason)
