"""The method for figures over time."""

import asyncio
from typing import Any

from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc, history_pb2
from gpu_metrics.domain.history_query import Aggregation, HistoryQuery, HistoryRun, Scope
from gpu_metrics.domain.readings import Tier
from gpu_metrics.domain.samples import FleetMetric
from gpu_metrics.feed import FleetFeed
from servicekit.clock import Clock
from servicekit.errors import FailedPrecondition

__all__ = ["HistoryMethods", "NoHistory"]

_DEFAULT_RANGE_SECONDS = 600
# So many GPUs are read before others get their turn: about a millisecond.
_GPUS_PER_TURN = 4


class NoHistory(FailedPrecondition):
    """This collector keeps no history."""

    reason = "HISTORY_OFF"


class HistoryMethods(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """The method for figures over time."""

    _feed: FleetFeed
    _clock: Clock

    async def QueryHistory(  # noqa: N802  # the method's name in the protocol
        self, request: history_pb2.QueryHistoryRequest, context: Any
    ) -> history_pb2.QueryHistoryResponse:
        """Return one figure over time, in steps."""
        history = self._feed.history
        if history is None:
            raise NoHistory("this collector keeps no history; ask another one")
        now = int(self._clock.now().timestamp())
        run = HistoryRun(history, _query(request, now), now)
        for turn, _ in enumerate(run.parts()):
            if turn % _GPUS_PER_TURN == 0:
                await asyncio.sleep(0)
        response = history_pb2.QueryHistoryResponse()
        response.step.seconds = run.step
        response.oldest_time.seconds = run.oldest
        for point in run.points():
            message = response.points.add(
                samples=point.samples, observed=point.observed, expected=point.expected
            )
            message.start_time.seconds = point.start
            if point.value is not None:
                message.value = point.value
        return response


def _query(request: history_pb2.QueryHistoryRequest, now: int) -> HistoryQuery:
    # The second that is under way belongs to the range that ends now.
    end = request.end_time.seconds if request.HasField("end_time") else now + 1
    length = request.range.seconds if request.HasField("range") else _DEFAULT_RANGE_SECONDS
    return HistoryQuery(
        metric=FleetMetric(request.metric),
        scope=Scope(
            gpu_uuid=request.gpu_uuid,
            server_id=request.server_id,
            host_id=request.host_id,
            tier=Tier(request.tier) if request.tier else None,
        ),
        start=end - max(length, 1),
        end=end,
        step=max(request.step.seconds, 1) if request.HasField("step") else None,
        aggregation=Aggregation(request.aggregation or Aggregation.MEAN.value),
    )
