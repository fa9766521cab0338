"""The methods for ways through the graph."""

from typing import Any

from gaming.knowledge_base.v1 import graph_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.domain.text import normalise_name
from knowledge_base.graph import ConceptGraph
from knowledge_base.wire.graph import path_answer, path_query, traversal_answer, traversal_query
from knowledge_base.wire.layers import layer_of

__all__ = ["GraphMethods"]


class GraphMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for ways through the graph."""

    _graph: ConceptGraph

    async def Traverse(  # noqa: N802  # named by the proto
        self, request: graph_pb2.TraverseRequest, context: Any
    ) -> graph_pb2.TraverseResponse:
        """Returns what is around a concept."""
        found = await self._graph.traverse(layer_of(request), traversal_query(request))
        return traversal_answer(found)

    async def FindPath(  # noqa: N802  # named by the proto
        self, request: graph_pb2.FindPathRequest, context: Any
    ) -> graph_pb2.FindPathResponse:
        """Returns the best path between two concepts."""
        path = await self._graph.find_path(layer_of(request), path_query(request))
        return path_answer(normalise_name("from_concept", request.from_concept), path)
