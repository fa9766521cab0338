"""Questions to the graph and their answers on the wire."""

from typing import Any

from gaming.knowledge_base.v1 import graph_pb2
from knowledge_base.domain.graph import (
    FoundPath,
    PathQuery,
    Surroundings,
    TieFilter,
    TraversalDirection,
    TraversalQuery,
    names_along,
)
from knowledge_base.domain.text import check_texts
from knowledge_base.wire.concepts import relationship_message
from knowledge_base.wire.layers import as_of_of

__all__ = ["path_answer", "path_query", "traversal_answer", "traversal_query"]

_DIRECTIONS = {
    graph_pb2.TRAVERSAL_DIRECTION_UNSPECIFIED: TraversalDirection.OUT,
    graph_pb2.TRAVERSAL_DIRECTION_OUT: TraversalDirection.OUT,
    graph_pb2.TRAVERSAL_DIRECTION_IN: TraversalDirection.IN,
    graph_pb2.TRAVERSAL_DIRECTION_BOTH: TraversalDirection.BOTH,
}
_DEFAULT_TRAVERSAL_DEPTH = 2
_DEFAULT_PATH_DEPTH = 6
_DEFAULT_CONCEPTS = 200
_DEFAULT_RELATIONSHIPS = 1000
# Concepts followed in one level of a search for a path; ten levels end within a statement's time.
_PATH_WIDTH = 1000


def traversal_query(request: graph_pb2.TraverseRequest) -> TraversalQuery:
    """Returns what a request asks. Raises InvalidText, InvalidRequest."""
    return TraversalQuery(
        request.start_concept,
        request.maximum_depth or _DEFAULT_TRAVERSAL_DEPTH,
        _ties(request),
        request.maximum_concepts or _DEFAULT_CONCEPTS,
        request.maximum_relationships or _DEFAULT_RELATIONSHIPS,
    )


def traversal_answer(found: Surroundings) -> graph_pb2.TraverseResponse:
    """Returns what is around a concept."""
    return graph_pb2.TraverseResponse(
        concepts=(
            graph_pb2.TraversedConcept(name=name, depth=depth) for name, depth in found.concepts
        ),
        relationships=map(relationship_message, found.relationships),
        truncated=found.truncated,
    )


def path_query(request: graph_pb2.FindPathRequest) -> PathQuery:
    """Returns what a request asks. Raises InvalidText, InvalidRequest."""
    return PathQuery(
        request.from_concept,
        request.to_concept,
        request.maximum_depth or _DEFAULT_PATH_DEPTH,
        _ties(request),
        shortest=request.preference != graph_pb2.PATH_PREFERENCE_STRONGEST,
        maximum_width=_PATH_WIDTH,
    )


def path_answer(start: str, path: FoundPath) -> graph_pb2.FindPathResponse:
    """Returns a path that begins at `start`, or that there is none."""
    return graph_pb2.FindPathResponse(
        found=path.found,
        concepts=names_along(start, path.relationships) if path.found else (),
        relationships=map(relationship_message, path.relationships),
        strength=path.strength,
        truncated=path.truncated,
    )


def _ties(request: Any) -> TieFilter:
    return TieFilter(
        check_texts("kinds", request.kinds),
        request.minimum_strength,
        _DIRECTIONS[request.direction],
        as_of_of(request),
    )
