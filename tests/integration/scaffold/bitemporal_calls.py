"""What tests of the bi-temporal memory ask of the service, and the world they ask in."""

import uuid
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import concepts_pb2, facts_pb2, worlds_pb2
from knowledge_base.testing import (
    RunningKnowledgeBase,
    failure_of,
)

__all__ = [
    "ATTRIBUTE",
    "CANARY",
    "CANON",
    "FACT",
    "TIMEOUT_SECONDS",
    "contradictions",
    "facts",
    "get",
    "home",
    "new_world",
    "put",
    "refused",
    "say",
    "year",
]

TIMEOUT_SECONDS = 20
CANARY = "the-canary-sings-at-dawn"
FACT = facts_pb2.CONTRADICTION_KIND_FACT
ATTRIBUTE = facts_pb2.CONTRADICTION_KIND_ATTRIBUTE
CANON = facts_pb2.CONTRADICTION_KIND_CANON


async def new_world(running: RunningKnowledgeBase) -> str:
    request = worlds_pb2.CreateWorldRequest(name=str(uuid.uuid4()), request_id=str(uuid.uuid4()))
    return (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id


def year(number: int) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime(number, 1, 1, tzinfo=UTC))
    return moment


async def put(running: RunningKnowledgeBase, name: str, **options: Any) -> concepts_pb2.Concept:
    fields = {
        "kind": "character",
        "description": "Text.",
        "request_id": str(uuid.uuid4()),
        **options,
    }
    request = concepts_pb2.PutConceptRequest(name=name, **fields)
    return (await running.stub.PutConcept(request, timeout=TIMEOUT_SECONDS)).concept


async def get(running: RunningKnowledgeBase, name: str, **options: Any) -> concepts_pb2.Concept:
    request = concepts_pb2.GetConceptRequest(name=name, **options)
    return (await running.stub.GetConcept(request, timeout=TIMEOUT_SECONDS)).concept


async def say(
    running: RunningKnowledgeBase,
    *facts: facts_pb2.Fact,
    request_id: str = "",
    **options: Any,
) -> list[facts_pb2.Fact]:
    request = facts_pb2.AssertFactsRequest(
        facts=facts, request_id=request_id or str(uuid.uuid4()), **options
    )
    return list((await running.stub.AssertFacts(request, timeout=TIMEOUT_SECONDS)).facts)


def home(place: str, **options: Any) -> facts_pb2.Fact:
    fields = {"single_valued": True, **options}
    return facts_pb2.Fact(subject="Nerrit", predicate="lives_in", text=place, **fields)


async def facts(running: RunningKnowledgeBase, **options: Any) -> list[facts_pb2.Fact]:
    found: list[facts_pb2.Fact] = []
    token = ""
    while True:
        page = await running.stub.ListFacts(
            facts_pb2.ListFactsRequest(page_token=token, **options), timeout=TIMEOUT_SECONDS
        )
        found += page.facts
        token = page.next_page_token
        if not token:
            return found


async def contradictions(
    running: RunningKnowledgeBase, **options: Any
) -> list[facts_pb2.Contradiction]:
    found: list[facts_pb2.Contradiction] = []
    token = ""
    while True:
        page = await running.stub.ListContradictions(
            facts_pb2.ListContradictionsRequest(page_token=token, **options),
            timeout=TIMEOUT_SECONDS,
        )
        found += page.contradictions
        token = page.next_page_token
        if not token:
            return found


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    told = failure_of(caught.value)
    assert CANARY not in told.text
    return told.code, told.reason


# --- concepts in two times -------------------------------------------------------------------
