"""Asks a service how it is, by the gRPC health protocol."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2

__all__ = ["HEALTHY", "service_health"]

HEALTHY = "SERVING"


async def service_health(channel: grpc.aio.Channel, *, timeout_seconds: float) -> str:
    """Returns the state of the server as a whole: `SERVING`, `NOT_SERVING`, ...

    Raises grpc.aio.AioRpcError when it does not answer within `timeout_seconds`.
    """
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
