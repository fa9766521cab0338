"""The methods for what a world takes from the bus."""

import uuid
from typing import Any

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import subscriptions_pb2
from knowledge_base.domain.subscriptions import NewSubscription
from knowledge_base.domain.text import parse_world_id
from knowledge_base.subscriptions import Subscriptions
from knowledge_base.wire.subscriptions import subscription_message

__all__ = ["SubscriptionMethods"]


class SubscriptionMethods(pb_grpc.KnowledgeBaseServiceServicer):
    """The methods for what a world takes from the bus."""

    _subscriptions: Subscriptions

    async def SetEventSubscription(  # noqa: N802  # named by the proto
        self, request: subscriptions_pb2.SetEventSubscriptionRequest, context: Any
    ) -> subscriptions_pb2.SetEventSubscriptionResponse:
        """Sets what a world takes from the bus."""
        wanted = request.subscription
        subscription = await self._subscriptions.set(
            uuid.UUID(request.request_id),
            parse_world_id("world_id", request.world_id),
            NewSubscription.of(wanted.event_types, wanted.sources),
        )
        return subscriptions_pb2.SetEventSubscriptionResponse(
            subscription=subscription_message(subscription)
        )

    async def GetEventSubscription(  # noqa: N802  # named by the proto
        self, request: subscriptions_pb2.GetEventSubscriptionRequest, context: Any
    ) -> subscriptions_pb2.GetEventSubscriptionResponse:
        """Returns what a world takes from the bus."""
        subscription = await self._subscriptions.get(parse_world_id("world_id", request.world_id))
        return subscriptions_pb2.GetEventSubscriptionResponse(
            subscription=subscription_message(subscription)
        )

    async def DeleteEventSubscription(  # noqa: N802  # named by the proto
        self, request: subscriptions_pb2.DeleteEventSubscriptionRequest, context: Any
    ) -> subscriptions_pb2.DeleteEventSubscriptionResponse:
        """Ends what a world takes from the bus."""
        subscription = await self._subscriptions.delete(
            uuid.UUID(request.request_id), parse_world_id("world_id", request.world_id)
        )
        return subscriptions_pb2.DeleteEventSubscriptionResponse(
            subscription=subscription_message(subscription)
        )
