"""Concepts with their versions, and how they relate."""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime

from knowledge_base.domain.concepts import (
    Concept,
    ConceptVersion,
    FieldChange,
    NewConcept,
    NewRelationship,
    Relationship,
    changes_between,
)
from knowledge_base.domain.errors import ConceptNotFound
from knowledge_base.domain.requests import Json, fingerprint
from knowledge_base.domain.story_time import ALWAYS, NOW, AsOf, Layer, Period
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.ports import RequestKey
from knowledge_base.ports_concepts import ConceptStore
from servicekit.clock import Clock
from servicekit.paging import Page, decode_page_token, encode_page_token

__all__ = ["ConceptBook", "layer_scope", "moment_text", "told_later"]

# What the database's integer holds; no concept has more versions.
_MAXIMUM_VERSION = 2**31 - 1


class ConceptBook:
    """What the story knows, as each layer sees it, in story time and in recorded time."""

    def __init__(
        self, store: ConceptStore, clock: Clock, *, new_id: Callable[[], uuid.UUID] = uuid.uuid4
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    async def put(self, request_id: uuid.UUID, layer: Layer, concept: NewConcept) -> Concept:
        """Records a version, which supersedes what the layer says of its story time.

        Raises WorldNotFound, RequestIdReused.
        """
        mark = fingerprint(
            "PutConcept",
            {
                "world": str(layer.world_id),
                "name": concept.name,
                "kind": concept.kind,
                "description": concept.description,
                "attributes": dict(concept.attributes),
                **told_later(layer, concept.period, source=concept.source),
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.put_concept(layer, key, self._new_id(), concept)

    async def get(self, layer: Layer, name: str, version: int = 0, as_of: AsOf = NOW) -> Concept:
        """Returns a concept as seen from a layer; version 0 means the one that holds as of `as_of`.

        Raises WorldNotFound, ConceptNotFound, InvalidText.
        """
        return await self._get(layer, normalise_name("name", name), version, as_of, "")

    async def get_known(
        self, layer: Layer, names: Sequence[str], as_of: AsOf = NOW
    ) -> dict[str, Concept]:
        """Returns those of these concepts that a layer sees, by name; however many, one statement.

        Raises WorldNotFound, InvalidText.
        """
        wanted = list(dict.fromkeys(normalise_name("name", name) for name in names))
        if not wanted:
            return {}
        found = await self._store.get_concepts(layer, wanted, as_of)
        return {concept.name: concept for concept in found}

    async def diff(
        self, layer: Layer, name: str, before: tuple[int, AsOf], after: tuple[int, AsOf]
    ) -> tuple[Concept, Concept, Sequence[FieldChange]]:
        """Returns two states, each given by a version or two moments, and how they differ.

        Raises WorldNotFound, ConceptNotFound, InvalidText.
        """
        name = normalise_name("name", name)
        first = await self._get(layer, name, *before, "before.")
        second = await self._get(layer, name, *after, "after.")
        return first, second, changes_between(first, second)

    async def _get(self, layer: Layer, name: str, version: int, as_of: AsOf, path: str) -> Concept:
        concept = None
        if not version:
            concept = await self._store.get_concept(layer, name, as_of)
        elif version <= _MAXIMUM_VERSION:
            concept = await self._store.get_concept_version(layer, name, version)
        if concept is not None:
            return concept
        raise ConceptNotFound(
            "The world sees no concept of this name"
            + (
                f" in version {version}."
                if version
                else " that holds then; see ListConceptVersions, or record it with PutConcept."
            ),
            metadata={"field": f"{path}version" if version else f"{path}name"},
        )

    async def history(
        self, layer: Layer, name: str, page_size: int, page_token: str
    ) -> Page[ConceptVersion]:
        """Returns the versions of the narrowest layer that has the concept, the newest first.

        Raises WorldNotFound, ConceptNotFound, InvalidPageToken.
        """
        name = normalise_name("name", name)
        scope = ("concept_versions", *layer_scope(layer), name)
        position = decode_page_token(page_token, scope, (int,))
        before = None if position is None else min(int(position[0]), _MAXIMUM_VERSION)
        found = await self._store.list_concept_versions(layer, name, before, page_size + 1)
        if not found and before is None:
            raise ConceptNotFound(
                "The world sees no concept of this name; record it with PutConcept first.",
                metadata={"field": "name"},
            )
        items = tuple(found[:page_size])
        more = len(found) > page_size
        token = encode_page_token(scope, (items[-1].concept.version,)) if more else ""
        return Page(items, token)

    async def list(
        self, layer: Layer, kind: str, page_size: int, page_token: str, as_of: AsOf = NOW
    ) -> Page[Concept]:
        """Returns the concepts seen from a layer, by name; an empty kind means all.

        Raises WorldNotFound, InvalidPageToken.
        """
        scope = ("concepts", *layer_scope(layer, as_of), check_text("kind", kind))
        position = decode_page_token(page_token, scope, (str,)) or [""]
        found = await self._store.list_concepts(
            layer, kind or None, as_of, check_text("page_token", str(position[0])), page_size + 1
        )
        items = tuple(found[:page_size])
        token = encode_page_token(scope, (items[-1].name,)) if len(found) > page_size else ""
        return Page(items, token)

    async def relate(
        self, request_id: uuid.UUID, layer: Layer, relationship: NewRelationship
    ) -> Relationship:
        """Records a tie, which supersedes what the layer says of its story time.

        Raises WorldNotFound, ConceptNotFound, RequestIdReused.
        """
        mark = fingerprint(
            "RelateConcepts",
            {
                "world": str(layer.world_id),
                "from": relationship.from_concept,
                "to": relationship.to_concept,
                "kind": relationship.kind,
                "strength": relationship.strength,
                **told_later(layer, relationship.period),
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.relate(layer, key, self._new_id(), relationship)

    async def end_relationship(
        self,
        request_id: uuid.UUID,
        layer: Layer,
        *,
        from_concept: str,
        to_concept: str,
        kind: str,
        valid_until: datetime | None,
    ) -> Sequence[Relationship]:
        """Ends a tie of this very layer; returns what remains believed of it.

        Raises WorldNotFound, RelationshipNotFound, RequestIdReused.
        """
        ended = {
            "from_concept": normalise_name("from_concept", from_concept),
            "to_concept": normalise_name("to_concept", to_concept),
            "kind": check_text("kind", kind),
        }
        mark = fingerprint(
            "EndRelationship",
            {
                **ended,
                "world": str(layer.world_id),
                **told_later(layer, Period(valid_until=valid_until)),
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.end_relationship(layer, key, **ended, valid_until=valid_until)

    async def list_relationships(
        self, layer: Layer, concept: str, page_size: int, page_token: str, as_of: AsOf = NOW
    ) -> Page[Relationship]:
        """Returns a concept's ties, those from it first, then those to it.

        Raises WorldNotFound, ConceptNotFound, InvalidPageToken.
        """
        concept = normalise_name("concept", concept)
        scope = ("relationships", *layer_scope(layer, as_of), concept)
        position = decode_page_token(page_token, scope, (int, str, str))
        after = None
        if position is not None:
            other, tie_kind = (check_text("page_token", str(text)) for text in position[1:])
            after = (int(bool(position[0])), other, tie_kind)
        found = await self._store.list_relationships(layer, concept, as_of, after, page_size + 1)
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            last = items[-1]
            outgoing = last.from_concept == concept
            other = last.to_concept if outgoing else last.from_concept
            token = encode_page_token(scope, (0 if outgoing else 1, other, last.kind))
        return Page(items, token)


def layer_scope(layer: Layer, as_of: AsOf = NOW) -> tuple[str, ...]:
    """Returns what a page token of a list seen from here is bound to.

    A list as it is now has the scope it had before there were players and moments, so that tokens
    stay good while a new version is rolled out.
    """
    beyond = (layer.player_id, moment_text(as_of.valid), moment_text(as_of.recorded))
    return (str(layer.world_id), *beyond) if any(beyond) else (str(layer.world_id),)


def told_later(layer: Layer, period: Period = ALWAYS, *, source: str = "") -> dict[str, Json]:
    """Returns what a request's fingerprint holds of the fields that came later, if set.

    So a request that does without them is recognised although its first try reached the version
    before.
    """
    told = {
        "player": layer.player_id,
        "valid_from": moment_text(period.valid_from),
        "valid_until": moment_text(period.valid_until),
        "source": source,
    }
    return {name: text for name, text in told.items() if text}


def moment_text(moment: datetime | None) -> str:
    """Returns a moment as text, empty for none."""
    return "" if moment is None else moment.isoformat()
