"""What an exported world is, and how a reader knows that it is whole.

The checksum is a chain, so that an export can go on after a break without its earlier rows:

    link(0) = SHA-256("gamekeeper world records 1")
    link(n) = SHA-256(link(n-1) || len(table) || table || len(columns) || columns
                      || for each vector, by column name: len(name) || name || len(data) || data)

for the n-th row; texts are UTF-8, a length is 8 bytes, big-endian. The trailer holds the last link.
"""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from knowledge_base.domain.world_errors import InvalidWorldRecords

__all__ = [
    "FIRST_LINK",
    "FORMAT_VERSION",
    "RecordChecker",
    "WorldHeader",
    "WorldRow",
    "WorldTrailer",
    "next_link",
]

FORMAT_VERSION = 1
FIRST_LINK = hashlib.sha256(b"gamekeeper world records 1").digest()
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class WorldHeader:
    """What follows in an export.

    Attributes:
        shared_concepts: names of concepts of all worlds that rows refer to, by their id.
    """

    format_version: int
    world_id: uuid.UUID
    name: str
    description: str
    create_time: datetime
    export_time: datetime
    embedding_model: str
    shared_concepts: Mapping[uuid.UUID, str]
    row_count: int


@dataclass(frozen=True, slots=True)
class WorldRow:
    """One row: its columns as a JSON object, its vectors as little-endian float32 by column."""

    columns_json: str
    vectors: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class WorldTrailer:
    """What an export held."""

    row_counts: Mapping[str, int]
    checksum: bytes


def next_link(link: bytes, table: str, row: WorldRow) -> bytes:
    """Returns the checksum's link after a row; see the module."""
    digest = hashlib.sha256(link)
    parts = [table.encode(), row.columns_json.encode()]
    for name in sorted(row.vectors):
        parts += [name.encode(), row.vectors[name]]
    for part in parts:
        digest.update(len(part).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(part)
    return digest.digest()


@dataclass(slots=True)
class RecordChecker:
    """Follows the records of an import and says whether they were all there, in their order."""

    link: bytes = FIRST_LINK
    counts: dict[str, int] = field(default_factory=dict)

    def take(self, table: str, rows: list[WorldRow]) -> None:
        """Takes the next rows. Raises InvalidWorldRecords when a table comes twice."""
        if table in self.counts and table != next(reversed(self.counts)):
            raise InvalidWorldRecords(
                "The rows of a table do not follow each other; send the export as it was written."
            )
        for row in rows:
            self.link = next_link(self.link, table, row)
        self.counts[table] = self.counts.get(table, 0) + len(rows)

    def finish(self, header: WorldHeader, trailer: WorldTrailer) -> None:
        """Checks all rows against what the export says of them.

        Raises InvalidWorldRecords when a row is missing, was added or was changed.
        """
        told = {table: count for table, count in trailer.row_counts.items() if count}
        if told != self.counts or sum(told.values()) != header.row_count:
            raise InvalidWorldRecords(
                "The export does not hold as many rows as it says; it was cut or put together."
            )
        if trailer.checksum != self.link:
            raise InvalidWorldRecords("The export's checksum is wrong; it was damaged or changed.")
