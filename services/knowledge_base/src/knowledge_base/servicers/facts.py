"""The methods for facts and contradictions."""

import uuid
from typing import Any

from gaming.knowledge_base.v1 import facts_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.domain.facts import FactQuery
from knowledge_base.facts import FactBook
from knowledge_base.wire.facts import contradiction_message, fact_message, new_fact
from knowledge_base.wire.layers import as_of_of, layer_of
from knowledge_base.wire.times import optional_time

__all__ = ["FactMethods"]

_OPEN = {
    facts_pb2.CONTRADICTION_STATE_UNSPECIFIED: None,
    facts_pb2.CONTRADICTION_STATE_OPEN: True,
    facts_pb2.CONTRADICTION_STATE_RESOLVED: False,
}


class FactMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for facts and contradictions."""

    _facts: FactBook

    async def AssertFacts(  # noqa: N802  # named by the proto
        self, request: facts_pb2.AssertFactsRequest, context: Any
    ) -> facts_pb2.AssertFactsResponse:
        """Records facts."""
        facts = await self._facts.assert_facts(
            uuid.UUID(request.request_id),
            layer_of(request),
            [new_fact(fact, f"facts[{index}].") for index, fact in enumerate(request.facts)],
        )
        return facts_pb2.AssertFactsResponse(facts=map(fact_message, facts))

    async def ListFacts(  # noqa: N802  # named by the proto
        self, request: facts_pb2.ListFactsRequest, context: Any
    ) -> facts_pb2.ListFactsResponse:
        """Returns facts."""
        page = await self._facts.list_facts(
            layer_of(request),
            FactQuery.of(request.subject, request.predicate, as_of_of(request)),
            request.page_size or 100,
            request.page_token,
        )
        return facts_pb2.ListFactsResponse(
            facts=map(fact_message, page.items), next_page_token=page.next_page_token
        )

    async def RetractFact(  # noqa: N802  # named by the proto
        self, request: facts_pb2.RetractFactRequest, context: Any
    ) -> facts_pb2.RetractFactResponse:
        """Ends a fact."""
        remaining = await self._facts.retract(
            uuid.UUID(request.request_id),
            layer_of(request),
            uuid.UUID(request.fact_id),
            optional_time(request, "valid_until"),
        )
        return facts_pb2.RetractFactResponse(facts=map(fact_message, remaining))

    async def ListContradictions(  # noqa: N802  # named by the proto
        self, request: facts_pb2.ListContradictionsRequest, context: Any
    ) -> facts_pb2.ListContradictionsResponse:
        """Returns contradictions."""
        page = await self._facts.list_contradictions(
            layer_of(request),
            _OPEN[request.state],
            request.subject,
            request.page_size or 100,
            request.page_token,
        )
        return facts_pb2.ListContradictionsResponse(
            contradictions=map(contradiction_message, page.items),
            next_page_token=page.next_page_token,
        )

    async def ResolveContradiction(  # noqa: N802  # named by the proto
        self, request: facts_pb2.ResolveContradictionRequest, context: Any
    ) -> facts_pb2.ResolveContradictionResponse:
        """Records what was decided on a contradiction."""
        contradiction = await self._facts.resolve(
            uuid.UUID(request.request_id),
            layer_of(request),
            uuid.UUID(request.contradiction_id),
            request.reason,
        )
        return facts_pb2.ResolveContradictionResponse(
            contradiction=contradiction_message(contradiction)
        )
