"""Concepts with their versions, and how they relate."""

import uuid
from collections.abc import Callable

from knowledge_base.domain.concepts import Concept, NewConcept, NewRelationship, Relationship
from knowledge_base.domain.errors import ConceptNotFound
from knowledge_base.domain.requests import fingerprint
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.ports import ConceptStore, RequestKey
from servicekit.clock import Clock
from servicekit.paging import Page, decode_page_token, encode_page_token

__all__ = ["ConceptBook"]


class ConceptBook:
    """What the story knows, as each world sees it: its own version hides a shared one."""

    def __init__(
        self, store: ConceptStore, clock: Clock, *, new_id: Callable[[], uuid.UUID] = uuid.uuid4
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    async def put(self, request_id: uuid.UUID, world_id: uuid.UUID, concept: NewConcept) -> Concept:
        """Records a new version. Raises WorldNotFound, RequestIdReused."""
        mark = fingerprint(
            "PutConcept",
            {
                "world": str(world_id),
                "name": concept.name,
                "kind": concept.kind,
                "description": concept.description,
                "attributes": dict(concept.attributes),
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.put_concept(world_id, key, self._new_id(), concept)

    async def get(self, world_id: uuid.UUID, name: str, version: int) -> Concept:
        """Returns a concept as the world sees it; version 0 means the latest.

        Raises WorldNotFound, ConceptNotFound, InvalidText.
        """
        name = normalise_name("name", name)
        # No concept has a version beyond what the database's integer holds.
        if version < 2**31:
            concept = await self._store.get_concept(world_id, name, version or None)
            if concept is not None:
                return concept
        raise ConceptNotFound(
            "The world sees no concept of this name"
            + (f" in version {version}." if version else "; record it with PutConcept first."),
            metadata={"field": "version" if version else "name"},
        )

    async def list(
        self, world_id: uuid.UUID, kind: str, page_size: int, page_token: str
    ) -> Page[Concept]:
        """Returns the latest versions the world sees, by name; an empty kind means all.

        Raises WorldNotFound, InvalidPageToken.
        """
        scope = ("concepts", str(world_id), check_text("kind", kind))
        position = decode_page_token(page_token, scope, (str,)) or [""]
        found = await self._store.list_concepts(
            world_id, kind or None, str(position[0]), page_size + 1
        )
        items = tuple(found[:page_size])
        token = encode_page_token(scope, (items[-1].name,)) if len(found) > page_size else ""
        return Page(items, token)

    async def relate(
        self, request_id: uuid.UUID, world_id: uuid.UUID, relationship: NewRelationship
    ) -> Relationship:
        """Records a tie. Raises WorldNotFound, ConceptNotFound, RequestIdReused."""
        mark = fingerprint(
            "RelateConcepts",
            {
                "world": str(world_id),
                "from": relationship.from_concept,
                "to": relationship.to_concept,
                "kind": relationship.kind,
                "strength": relationship.strength,
            },
        )
        key = RequestKey(request_id, mark, self._clock.now())
        return await self._store.relate(world_id, key, self._new_id(), relationship)

    async def list_relationships(
        self, world_id: uuid.UUID, concept: str, page_size: int, page_token: str
    ) -> Page[Relationship]:
        """Returns a concept's ties, those from it first, then those to it.

        Raises WorldNotFound, ConceptNotFound, InvalidPageToken.
        """
        concept = normalise_name("concept", concept)
        scope = ("relationships", str(world_id), concept)
        position = decode_page_token(page_token, scope, (int, str, str))
        after = None
        if position is not None:
            after = (int(position[0]), str(position[1]), str(position[2]))
        found = await self._store.list_relationships(world_id, concept, after, page_size + 1)
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            last = items[-1]
            outgoing = last.from_concept == concept
            other = last.to_concept if outgoing else last.from_concept
            token = encode_page_token(scope, (0 if outgoing else 1, other, last.kind))
        return Page(items, token)
