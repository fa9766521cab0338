"""gaming.knowledge_base.v1.KnowledgeBaseService on the wire."""

from gaming.knowledge_base.v1 import knowledge_base_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.concepts import ConceptBook
from knowledge_base.context import ContextBuilder
from knowledge_base.embedding_change import EmbeddingChange
from knowledge_base.embedding_models import EmbeddingModels
from knowledge_base.facts import FactBook
from knowledge_base.graph import ConceptGraph
from knowledge_base.ingest import LoreIngest
from knowledge_base.memory import WorldMemory
from knowledge_base.search import LoreSearch
from knowledge_base.servicers.concepts import ConceptMethods
from knowledge_base.servicers.context import ContextMethods
from knowledge_base.servicers.embedding_models import EmbeddingModelMethods
from knowledge_base.servicers.facts import FactMethods
from knowledge_base.servicers.graph import GraphMethods
from knowledge_base.servicers.lore import LoreMethods
from knowledge_base.servicers.one_model import OneModelPerCall
from knowledge_base.servicers.story import StoryMethods
from knowledge_base.servicers.subscriptions import SubscriptionMethods
from knowledge_base.servicers.world_lifecycle import WorldLifecycleMethods
from knowledge_base.servicers.worlds import WorldMethods
from knowledge_base.subscriptions import Subscriptions
from knowledge_base.whole_worlds import WholeWorlds
from servicekit.server import ServiceRegistration

__all__ = ["KnowledgeBaseServicer"]


class KnowledgeBaseServicer(
    LoreMethods,
    WorldMethods,
    WorldLifecycleMethods,
    StoryMethods,
    SubscriptionMethods,
    ConceptMethods,
    ContextMethods,
    EmbeddingModelMethods,
    FactMethods,
    GraphMethods,
):
    """Serves the knowledge base."""

    def __init__(
        self,
        *,
        ingest: LoreIngest,
        search: LoreSearch,
        memory: WorldMemory,
        concepts: ConceptBook,
        facts: FactBook,
        graph: ConceptGraph,
        subscriptions: Subscriptions,
        models: EmbeddingModels,
        embedding_change: EmbeddingChange,
        worlds: WholeWorlds,
        context: ContextBuilder,
    ) -> None:
        self._ingest = ingest
        self._search = search
        self._memory = memory
        self._concepts = concepts
        self._facts = facts
        self._graph = graph
        self._subscriptions = subscriptions
        self._models = models
        self._embedding_change = embedding_change
        self._context = context
        self._jobs = worlds.jobs
        self._records = worlds.records
        self._watch = worlds.watch

    def registration(self) -> ServiceRegistration:
        """Returns what a server needs to serve this."""
        service = knowledge_base_pb2.DESCRIPTOR.services_by_name["KnowledgeBaseService"]
        return ServiceRegistration.of(
            pb_grpc.add_KnowledgeBaseServiceServicer_to_server,
            OneModelPerCall(self, self._models, service),
            service,
        )
