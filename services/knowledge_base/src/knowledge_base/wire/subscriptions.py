"""Subscriptions to the event bus on the wire."""

from gaming.knowledge_base.v1 import subscriptions_pb2
from knowledge_base.domain.subscriptions import EventSubscription
from knowledge_base.wire.times import stamp

__all__ = ["subscription_message"]


def subscription_message(
    subscription: EventSubscription | None,
) -> subscriptions_pb2.EventSubscription | None:
    """Returns what a world takes from the bus; None, so an unset field, when nothing."""
    if subscription is None:
        return None
    return subscriptions_pb2.EventSubscription(
        world_id=str(subscription.world_id),
        event_types=subscription.event_types,  # type: ignore[arg-type]  # validated when it was set
        sources=subscription.sources,
        update_time=stamp(subscription.update_time),
    )
