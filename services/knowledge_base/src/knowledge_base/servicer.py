"""gaming.knowledge_base.v1.KnowledgeBaseService on the wire."""

from gaming.knowledge_base.v1 import knowledge_base_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.concepts import ConceptBook
from knowledge_base.facts import FactBook
from knowledge_base.graph import ConceptGraph
from knowledge_base.ingest import LoreIngest
from knowledge_base.memory import WorldMemory
from knowledge_base.search import LoreSearch
from knowledge_base.servicers.concepts import ConceptMethods
from knowledge_base.servicers.facts import FactMethods
from knowledge_base.servicers.graph import GraphMethods
from knowledge_base.servicers.lore import LoreMethods
from knowledge_base.servicers.story import StoryMethods
from knowledge_base.servicers.subscriptions import SubscriptionMethods
from knowledge_base.servicers.worlds import WorldMethods
from knowledge_base.subscriptions import Subscriptions
from servicekit.server import ServiceRegistration

__all__ = ["KnowledgeBaseServicer"]


class KnowledgeBaseServicer(
    LoreMethods,
    WorldMethods,
    StoryMethods,
    SubscriptionMethods,
    ConceptMethods,
    FactMethods,
    GraphMethods,
):
    """Serves the knowledge base."""

    def __init__(
        self,
        ingest: LoreIngest,
        search: LoreSearch,
        memory: WorldMemory,
        *,
        concepts: ConceptBook,
        facts: FactBook,
        graph: ConceptGraph,
        subscriptions: Subscriptions,
    ) -> None:
        self._ingest = ingest
        self._search = search
        self._memory = memory
        self._concepts = concepts
        self._facts = facts
        self._graph = graph
        self._subscriptions = subscriptions

    def registration(self) -> ServiceRegistration:
        """Returns what a server needs to serve this."""
        return ServiceRegistration.of(
            pb_grpc.add_KnowledgeBaseServiceServicer_to_server,
            self,
            knowledge_base_pb2.DESCRIPTOR.services_by_name["KnowledgeBaseService"],
        )
