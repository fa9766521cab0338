"""A client built from the committed baseline alone works against today's servers."""

import asyncio
import uuid
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor

BASELINE = Path(__file__).parent / "baseline.binpb"
CALL_SECONDS = 20.0
SPEC = {
    "messages": [{"role": "CHAT_ROLE_USER", "content": "Say something."}],
    "max_output_tokens": 8,
}


class BaselineClient:
    """Calls methods by name with messages made from the baseline's descriptors."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        # A pool of its own: the generated code of today must not leak in.
        pool = descriptor_pool.DescriptorPool()
        files = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
        for file in files.file:
            pool.Add(file)
        self._channel = channel
        self._service = pool.FindServiceByName(service)

    async def call(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Returns the (first) response as JSON fields."""
        method: MethodDescriptor = self._service.methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type)()
        json_format.ParseDict(fields, request)
        response_type = message_factory.GetMessageClass(method.output_type)
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        # Unary or streaming as the descriptor says, so no one type fits.
        stub: Any = kind(
            f"/{self._service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        call = stub(request, timeout=CALL_SECONDS)
        if method.server_streaming:
            response = await anext(aiter(call))
            call.cancel()
        else:
            response = await call
        fields_of_response: dict[str, Any] = json_format.MessageToDict(
            response, preserving_proto_field_name=True
        )
        return fields_of_response


CALLS = [
    ("gpu_metrics", "gaming.gpu_metrics.v1.GpuMetricsService", "GetFleet", {}),
    ("gpu_metrics", "gaming.gpu_metrics.v1.GpuMetricsService", "WatchFleet", {}),
    ("gpu_metrics", "gaming.gpu_metrics.v1.GpuMetricsService", "ListServers", {}),
    ("autoscaler", "gaming.autoscaler.v1.AutoscalerService", "GetStatus", {}),
    ("autoscaler", "gaming.autoscaler.v1.AutoscalerService", "GetTier", {"tier": "TIER_SILVER"}),
    ("autoscaler", "gaming.autoscaler.v1.AutoscalerService", "ListTiers", {}),
    ("autoscaler", "gaming.autoscaler.v1.AutoscalerService", "ListDecisions", {}),
    ("autoscaler", "gaming.autoscaler.v1.AutoscalerService", "WatchDecisions", {}),
    (
        "autoscaler",
        "gaming.autoscaler.v1.AutoscalerService",
        "ReportPlayers",
        {"players_online": 3},
    ),
    ("ai_router", "gaming.ai_router.v1.AiRouterService", "ListTiers", {}),
    ("ai_router", "gaming.ai_router.v1.AiRouterService", "ExplainRoute", {"spec": SPEC}),
    ("ai_router", "gaming.ai_router.v1.AiRouterService", "WatchDemand", {}),
    ("knowledge_base", "gaming.knowledge_base.v1.KnowledgeBaseService", "ListDocuments", {}),
    ("knowledge_base", "gaming.knowledge_base.v1.KnowledgeBaseService", "ListWorlds", {}),
    (
        "knowledge_base",
        "gaming.knowledge_base.v1.KnowledgeBaseService",
        "Search",
        {"query": "stile"},
    ),
    ("knowledge_base", "gaming.knowledge_base.v1.KnowledgeBaseService", "ListConcepts", {}),
]


@pytest.mark.parametrize(
    ("name", "service", "method", "fields"), CALLS, ids=[f"{c[0]}.{c[2]}" for c in CALLS]
)
async def test_a_read_of_the_baseline_client_is_answered(
    name: str,
    service: str,
    method: str,
    fields: dict[str, Any],
    suite_addresses: dict[str, str],
) -> None:
    async with grpc.aio.insecure_channel(suite_addresses[name]) as channel:
        async with asyncio.timeout(CALL_SECONDS):
            await BaselineClient(channel, service).call(method, fields)


async def test_a_world_made_by_the_baseline_client_remembers(
    suite_addresses: dict[str, str],
) -> None:
    async with grpc.aio.insecure_channel(suite_addresses["knowledge_base"]) as channel:
        client = BaselineClient(channel, "gaming.knowledge_base.v1.KnowledgeBaseService")
        name = f"baseline {uuid.uuid4()}"
        made = await client.call("CreateWorld", {"name": name, "request_id": str(uuid.uuid4())})
        world_id = made["world"]["world_id"]
        event = {"text": "The ferryman at Low Weir took no coin.", "participants": ["ferryman"]}
        await client.call(
            "RecordEvents",
            {"world_id": world_id, "events": [event], "request_id": str(uuid.uuid4())},
        )
        recalled = await client.call("Recall", {"world_id": world_id, "query": "the ferryman"})
        assert recalled["events"][0]["event"]["text"] == event["text"]
