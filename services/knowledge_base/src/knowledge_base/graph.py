"""Ways through the graph of concepts and relationships."""

from dataclasses import replace

from knowledge_base.domain.graph import (
    FoundPath,
    PathQuery,
    Surroundings,
    TraversalQuery,
    within_size,
)
from knowledge_base.domain.story_time import Layer
from knowledge_base.domain.text import normalise_name
from knowledge_base.ports_concepts import GraphStore

__all__ = ["ConceptGraph"]

# Below the 1 MiB of a unary message, with room for what the estimate of sizes misses.
_MAXIMUM_ANSWER_BYTES = 900_000


class ConceptGraph:
    """What is around a concept, and how one leads to another."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store

    async def traverse(self, layer: Layer, query: TraversalQuery) -> Surroundings:
        """Returns what is around a concept, as much as fits one message.

        Raises WorldNotFound, ConceptNotFound, InvalidText.
        """
        start = normalise_name("start_concept", query.start_concept)
        found = await self._store.traverse(layer, replace(query, start_concept=start))
        return within_size(found, _MAXIMUM_ANSWER_BYTES)

    async def find_path(self, layer: Layer, query: PathQuery) -> FoundPath:
        """Returns the best path between two concepts.

        Raises WorldNotFound, ConceptNotFound, InvalidText.
        """
        return await self._store.find_path(
            layer,
            replace(
                query,
                from_concept=normalise_name("from_concept", query.from_concept),
                to_concept=normalise_name("to_concept", query.to_concept),
            ),
        )
