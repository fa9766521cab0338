"""An autoscaler's contract answered by a test: real messages and methods, none of the logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc.aio

from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit.server import ServiceRegistration
from servicekit.testing import servicer_with

__all__ = ["GOLD", "SERVICE", "answer_tier", "autoscaler_stub", "autoscaler_with"]

SERVICE = "gaming.autoscaler.v1.AutoscalerService"

GOLD = autoscaler_pb2.GetTierRequest(tier=tier_pb2.TIER_GOLD)


def autoscaler_with(**methods: Callable[..., Any]) -> ServiceRegistration:
    """Returns a service to register that answers `methods` only, as `servicer_with` takes them."""
    return ServiceRegistration.of(
        autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
        servicer_with(autoscaler_pb2_grpc.AutoscalerServiceServicer, **methods),
        autoscaler_pb2.DESCRIPTOR.services_by_name["AutoscalerService"],
    )


def autoscaler_stub(channel: grpc.aio.Channel) -> autoscaler_pb2_grpc.AutoscalerServiceAsyncStub:
    """Returns a stub typed for a channel of grpc.aio."""
    return autoscaler_pb2_grpc.AutoscalerServiceStub(channel)


async def answer_tier(request: Any, context: Any) -> Any:
    """Answers `GetTier` with the tier that was asked for."""
    return autoscaler_pb2.GetTierResponse(tier=autoscaler_pb2.TierState(tier=request.tier))
