"""Records the concepts that documents declare among those all worlds share."""

import uuid
from collections.abc import Callable, Sequence

from knowledge_base.concepts import ConceptBook
from knowledge_base.domain.concepts import Concept, NewConcept
from knowledge_base.domain.declared_concepts import DeclaredConcept
from knowledge_base.domain.story_time import Layer
from knowledge_base.domain.text import SHARED_WORLD

__all__ = ["ConceptDeclarations"]

_SHARED = Layer(SHARED_WORLD)
# As PutConcept takes it.
_LONGEST_SOURCE = 200


class ConceptDeclarations:
    """Keeps shared concepts at what the documents say; what did not change gets no new version."""

    def __init__(
        self, concepts: ConceptBook, *, new_id: Callable[[], uuid.UUID] = uuid.uuid4
    ) -> None:
        self._concepts = concepts
        self._new_id = new_id

    async def record(self, declared: Sequence[DeclaredConcept], source: str) -> int:
        """Records those whose kind, description or facts are new; returns how many.

        `source` names the document.
        """
        all_known = await self._concepts.get_known(_SHARED, [each.name for each in declared])
        recorded = 0
        for concept in declared:
            known = all_known.get(concept.name)
            if known is not None and (concept.is_reference or _says_the_same(concept, known)):
                continue
            await self._concepts.put(self._new_id(), _SHARED, _version(concept, source))
            recorded += 1
        return recorded


def _version(declared: DeclaredConcept, source: str = "") -> NewConcept:
    # A concept that nothing is said about is still known by its name.
    description = declared.description or declared.excerpt or declared.name
    return NewConcept.of(
        declared.name,
        declared.kind,
        description,
        declared.attributes,
        source=source[:_LONGEST_SOURCE],
    )


def _says_the_same(declared: DeclaredConcept, known: Concept) -> bool:
    version = _version(declared)
    return (version.kind, version.description, dict(version.attributes)) == (
        known.kind,
        known.description,
        dict(known.attributes),
    )
