"""Facts and contradictions in PostgreSQL (migrations 0020 to 0022)."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from knowledge_base.adapters.database import Database
from knowledge_base.adapters.postgres_concepts import CONCEPT_QUERIES
from knowledge_base.domain.errors import ContradictionNotFound
from knowledge_base.domain.facts import (
    Contradiction,
    ContradictionKind,
    ContradictionSide,
    Fact,
    FactQuery,
    KnowledgeLayer,
    NewFact,
)
from knowledge_base.domain.story_time import Layer, Period
from knowledge_base.ports import RequestKey

__all__ = ["PostgresFacts"]

# asyncpg's stand-ins for PostgreSQL's infinities have no time zone.
_SINCE_EVER = datetime.min  # noqa: DTZ901  # as above
_FOR_EVER = datetime.max  # noqa: DTZ901  # as above


class PostgresFacts:
    """The port `FactStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def assert_facts(
        self, layer: Layer, key: RequestKey, facts: Sequence[tuple[uuid.UUID, NewFact]]
    ) -> list[Fact]:
        """Records facts, all or none.

        Raises WorldNotFound, ConceptNotFound, EventNotFound, RequestIdReused.
        """
        rows = await self._database.fetch(
            CONCEPT_QUERIES.assert_facts,
            layer.world_id,
            layer.player_id,
            key.request_id,
            key.fingerprint,
            key.now,
            json.dumps([_item(fact_id, fact) for fact_id, fact in facts]),
        )
        return [_fact(row) for row in rows]

    async def list_facts(
        self,
        layer: Layer,
        query: FactQuery,
        after: tuple[str, str, datetime | None, uuid.UUID] | None,
        limit: int,
    ) -> list[Fact]:
        """Returns facts in their order. Raises WorldNotFound."""
        position: tuple[Any, ...] = (None, None, None, None)
        if after is not None:
            position = (after[0], after[1], after[2] or _SINCE_EVER, after[3])
        rows = await self._database.fetch(
            CONCEPT_QUERIES.list_facts,
            layer.world_id,
            layer.player_id,
            query.subject or None,
            query.predicate or None,
            query.as_of.valid,
            query.as_of.recorded,
            *position,
            limit,
        )
        return [_fact(row) for row in rows]

    async def retract_fact(
        self, layer: Layer, key: RequestKey, fact_id: uuid.UUID, valid_until: datetime | None
    ) -> list[Fact]:
        """Ends a fact. Raises WorldNotFound, FactNotFound, RequestIdReused."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.retract_fact,
            layer.world_id,
            layer.player_id,
            key.request_id,
            key.fingerprint,
            key.now,
            fact_id,
            valid_until,
        )
        return [_fact(row) for row in rows]

    async def list_contradictions(
        self,
        layer: Layer,
        is_open: bool | None,
        subject: str | None,
        before: tuple[datetime, uuid.UUID] | None,
        limit: int,
    ) -> list[Contradiction]:
        """Returns contradictions, the newest first. Raises WorldNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.list_contradictions,
            layer.world_id,
            layer.player_id,
            is_open,
            subject,
            *(before or (None, None)),
            limit,
        )
        return [_contradiction(row) for row in rows]

    async def resolve_contradiction(
        self, layer: Layer, key: RequestKey, contradiction_id: uuid.UUID, resolution: str
    ) -> Contradiction:
        """Marks one as resolved. Raises WorldNotFound, ContradictionNotFound, RequestIdReused."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.resolve_contradiction,
            layer.world_id,
            layer.player_id,
            key.request_id,
            key.fingerprint,
            key.now,
            contradiction_id,
            resolution,
        )
        if not rows:  # a repeat, after the world was emptied
            raise ContradictionNotFound("There is no such contradiction; see ListContradictions.")
        return _contradiction(rows[0])


def _item(fact_id: uuid.UUID, fact: NewFact) -> dict[str, object]:
    return {
        "fact_id": str(fact_id),
        "subject": fact.subject,
        "predicate": fact.predicate,
        "object": fact.object,
        "object_is_concept": fact.object_is_concept,
        "single_valued": fact.single_valued,
        "source": fact.source,
        "source_event_id": _text(fact.source_event_id),
        "valid_from": _text(fact.period.valid_from),
        "valid_until": _text(fact.period.valid_until),
    }


def _text(value: uuid.UUID | datetime | None) -> str | None:
    if isinstance(value, datetime):
        return value.isoformat()
    return None if value is None else str(value)


def _fact(row: Any) -> Fact:
    return Fact(
        row["fact_id"],
        row["world_id"],
        row["player_id"],
        row["subject"],
        row["predicate"],
        row["object"],
        row["object_is_concept"],
        row["single_valued"],
        Period(_finite(row["valid_from"]), _finite(row["valid_until"])),
        row["source"],
        row["source_event_id"],
        row["record_time"],
        _finite(row["superseded_time"]),
    )


def _contradiction(row: Any) -> Contradiction:
    layer = KnowledgeLayer.PLAYER if row["player_id"] else KnowledgeLayer.WORLD
    if row["earlier_layer"] == KnowledgeLayer.SHARED and row["kind"] != ContradictionKind.CANON:
        layer = KnowledgeLayer.SHARED  # both sides are of one layer
    return Contradiction(
        row["contradiction_id"],
        row["world_id"],
        row["player_id"],
        ContradictionKind(row["kind"]),
        row["subject"],
        row["predicate"],
        ContradictionSide(
            KnowledgeLayer(row["earlier_layer"]),
            row["earlier_id"],
            row["earlier_version"],
            row["earlier_value"],
            row["earlier_source"],
        ),
        ContradictionSide(
            layer, row["later_id"], row["later_version"], row["later_value"], row["later_source"]
        ),
        Period(_finite(row["valid_from"]), _finite(row["valid_until"])),
        row["record_time"],
        row["resolve_time"],
        row["resolution"],
    )


def _finite(moment: datetime) -> datetime | None:
    """Returns None for an infinity, which asyncpg reads as a moment without a time zone."""
    return (
        None if moment.replace(tzinfo=None) in (_SINCE_EVER, _FOR_EVER) else moment.astimezone(UTC)
    )
