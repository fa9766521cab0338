"""Facts of the story in two times, and contradictions in what is said."""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime

from knowledge_base.concepts import layer_scope, moment_text, told_later
from knowledge_base.domain.facts import Contradiction, Fact, FactQuery, NewFact
from knowledge_base.domain.requests import Json, fingerprint
from knowledge_base.domain.story_time import Layer, Period
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.ports import RequestKey
from knowledge_base.ports_concepts import FactStore
from servicekit.clock import Clock
from servicekit.errors import FieldViolation
from servicekit.paging import InvalidPageToken, Page, decode_page_token, encode_page_token

__all__ = ["FactBook"]


class FactBook:
    """What is said to be so, and what of it cannot be so at one time."""

    def __init__(
        self, store: FactStore, clock: Clock, *, new_id: Callable[[], uuid.UUID] = uuid.uuid4
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    async def assert_facts(
        self, request_id: uuid.UUID, layer: Layer, facts: Sequence[NewFact]
    ) -> list[Fact]:
        """Records facts, all or none, and the contradictions they make.

        Raises WorldNotFound, ConceptNotFound, EventNotFound, RequestIdReused.
        """
        mark = fingerprint(
            "AssertFacts",
            {
                "world": str(layer.world_id),
                "player": layer.player_id,
                "facts": [_told(fact) for fact in facts],
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.assert_facts(
            layer, key, [(self._new_id(), fact) for fact in facts]
        )

    async def list_facts(
        self,
        layer: Layer,
        query: FactQuery,
        page_size: int,
        page_token: str,
    ) -> Page[Fact]:
        """Returns facts by subject and predicate. Raises WorldNotFound, InvalidPageToken."""
        scope = ("facts", *layer_scope(layer, query.as_of), query.subject, query.predicate)
        position = decode_page_token(page_token, scope, (str, str, str, str))
        after = None
        if position is not None:
            texts = [check_text("page_token", str(text)) for text in position]
            after = (
                texts[0],
                texts[1],
                _moment(texts[2]) if texts[2] else None,
                _identifier(texts[3]),
            )
        found = await self._store.list_facts(layer, query, after, page_size + 1)
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            last = items[-1]
            began = moment_text(last.period.valid_from)
            token = encode_page_token(
                scope, (last.subject, last.predicate, began, str(last.fact_id))
            )
        return Page(items, token)

    async def retract(
        self,
        request_id: uuid.UUID,
        layer: Layer,
        fact_id: uuid.UUID,
        valid_until: datetime | None,
    ) -> list[Fact]:
        """Ends a fact of this very layer; returns what remains believed of it.

        Raises WorldNotFound, FactNotFound, RequestIdReused.
        """
        mark = fingerprint(
            "RetractFact",
            {
                "world": str(layer.world_id),
                "fact": str(fact_id),
                **told_later(layer, Period(valid_until=valid_until)),
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.retract_fact(layer, key, fact_id, valid_until)

    async def list_contradictions(
        self, layer: Layer, is_open: bool | None, subject: str, page_size: int, page_token: str
    ) -> Page[Contradiction]:
        """Returns contradictions, the newest first; `is_open` None means open and resolved ones.

        Raises WorldNotFound, InvalidPageToken, InvalidText.
        """
        subject = normalise_name("subject", subject) if subject else ""
        scope = ("contradictions", *layer_scope(layer), str(is_open), subject)
        position = decode_page_token(page_token, scope, (str, str))
        before = None
        if position is not None:
            before = (_moment(str(position[0])), _identifier(str(position[1])))
        found = await self._store.list_contradictions(
            layer, is_open, subject or None, before, page_size + 1
        )
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            last = items[-1]
            token = encode_page_token(
                scope, (last.record_time.isoformat(), str(last.contradiction_id))
            )
        return Page(items, token)

    async def resolve(
        self, request_id: uuid.UUID, layer: Layer, contradiction_id: uuid.UUID, reason: str
    ) -> Contradiction:
        """Records what was decided on a contradiction; the first decision stays.

        Raises WorldNotFound, ContradictionNotFound, RequestIdReused.
        """
        reason = check_text("reason", reason)
        mark = fingerprint(
            "ResolveContradiction",
            {
                "world": str(layer.world_id),
                "contradiction": str(contradiction_id),
                "reason": reason,
                **told_later(layer),
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.resolve_contradiction(layer, key, contradiction_id, reason)


def _told(fact: NewFact) -> dict[str, Json]:
    return {
        "subject": fact.subject,
        "predicate": fact.predicate,
        "object": fact.object,
        "object_is_concept": fact.object_is_concept,
        "single_valued": fact.single_valued,
        "valid_from": moment_text(fact.period.valid_from),
        "valid_until": moment_text(fact.period.valid_until),
        "source": fact.source,
        "source_event": str(fact.source_event_id or ""),
    }


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _bad_token()
    return moment


def _identifier(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise _bad_token() from None


def _bad_token() -> InvalidPageToken:
    message = "must be the next_page_token of the previous page; leave it empty to start again"
    return InvalidPageToken(
        f"page_token {message}.", field_violations=[FieldViolation("page_token", message)]
    )
