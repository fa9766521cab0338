"""What happens to GPUs, each event exactly once, from whichever collector answers.

    positions, both = GpuEventPositions.load(saved), ["collector-1:50061", "collector-2:50061"]
    async with aclosing(watch_gpu_events(both, positions)) as news:
        async for each in news:
            await handle(each)
            saved = positions.dump()

An event is named by host, journal and sequence, and every collector holds the same ones, so a
subscriber that keeps its positions goes on at another collector, or after its own restart, where it
stood. One that stores them together with what it did has done everything exactly once.
"""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Self

import grpc
import grpc.aio

from gamekeeper.call_errors import CallFailed
from gaming.gpu_metrics.v1 import events_pb2, gpu_metrics_pb2_grpc
from servicekit.channels import ChannelSettings, open_channel
from servicekit.clock import Clock, SystemClock
from servicekit.watching import watch

__all__ = ["GpuEventNotice", "GpuEventPositions", "watch_gpu_events"]

# As many as a request may name. Of journals that were quiet for longer the collector starts over,
# and what it repeats is dropped here.
_POSITIONS_PER_REQUEST = 4096
_POSITIONS_KEPT = 65_536
# To ask again would be answered the same.
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


@dataclass(frozen=True, slots=True)
class GpuEventNotice:
    """One event, or what is known of events that nobody can give any more.

    Attributes:
        host_id: the host.
        journal_id: its journal.
        sequence: the event's number in it, or that of the last event that was lost.
        event: what happened; None where all that is left to say is how many were lost.
        receive_time: when the collector took it in; None without an event.
        lost_events: events just before this one that were given up by the host or the collector.
    """

    host_id: str
    journal_id: str
    sequence: int
    event: events_pb2.GpuEvent | None
    receive_time: datetime | None
    lost_events: int


class GpuEventPositions:
    """How far a subscriber is in each journal."""

    def __init__(self) -> None:
        self._sequences: OrderedDict[tuple[str, str], int] = OrderedDict()

    @classmethod
    def load(cls, text: str) -> Self:
        """Returns the positions that `dump` returned; an empty text holds none.

        Raises:
            ValueError: the text is not one of `dump`.
        """
        positions = cls()
        try:
            match json.loads(text or "[]"):
                case [*entries]:
                    for host_id, journal_id, sequence in entries:
                        positions.take(str(host_id), str(journal_id), int(sequence))
                    return positions
        except (TypeError, ValueError) as error:
            raise ValueError("the text holds no positions of GPU events") from error
        raise ValueError("the text holds no positions of GPU events")

    def dump(self) -> str:
        """Returns the positions as text, to be stored with what was done so far."""
        return json.dumps([[*key, sequence] for key, sequence in self._sequences.items()])

    def take(self, host_id: str, journal_id: str, sequence: int) -> bool:
        """Moves on to `sequence`; returns whether it is beyond where this journal stood."""
        key = (host_id, journal_id)
        if sequence <= self._sequences.get(key, 0):
            return False
        self._sequences[key] = sequence
        self._sequences.move_to_end(key)
        if len(self._sequences) > _POSITIONS_KEPT:
            self._sequences.popitem(last=False)
        return True

    def messages(self) -> list[events_pb2.JournalPosition]:
        """Returns the positions that a request names: those that moved last."""
        return [
            events_pb2.JournalPosition(host_id=host_id, journal_id=journal_id, sequence=sequence)
            for (host_id, journal_id), sequence in islice(
                reversed(self._sequences.items()), _POSITIONS_PER_REQUEST
            )
        ]


async def watch_gpu_events(
    collectors: Sequence[str],
    positions: GpuEventPositions | None = None,
    *,
    host_id: str = "",
    only_new: bool = False,
    settings: ChannelSettings | None = None,
    clock: Clock | None = None,
    idle_timeout_seconds: float = 15.0,
    maximum_backoff_seconds: float = 1.0,
    jitter: random.Random | None = None,
) -> AsyncGenerator[GpuEventNotice, None]:
    """Yields each event once, without end, from one collector after the other as they fail.

    Close it (`contextlib.aclosing`) to end the call; a cancelled consumer ends it too.

    Args:
        collectors: `host:port` of each; any of them will do.
        positions: where the subscriber stands; moved on with every event that is yielded.
        host_id: only this host; empty means all.
        only_new: leave out what the first collector that answers has already.
        settings: TLS of the channels; default: none, for collectors on this machine.
        clock: measures pauses and silence.
        idle_timeout_seconds: a collector that is silent for longer is left for the next one; it
            sends a heartbeat every 5 s.
        maximum_backoff_seconds: longest pause between two tries.
        jitter: randomness of the pauses.

    Raises:
        CallFailed: a collector refuses the subscription; to try again would change nothing.
        ValueError: no collector is named.
    """
    if not collectors:
        raise ValueError("at least one collector is needed")
    positions = positions if positions is not None else GpuEventPositions()
    async with AsyncExitStack() as stack:
        stubs = [
            gpu_metrics_pb2_grpc.GpuMetricsServiceStub(
                await stack.enter_async_context(open_channel(address, settings))
            )
            for address in collectors
        ]
        subscription = _Subscription(stubs, positions, host_id, only_new=only_new)
        messages = await stack.enter_async_context(
            aclosing(
                watch(
                    lambda _: subscription.open(),
                    token_of=lambda _: "",
                    clock=clock or SystemClock(),
                    name="gpu_events",
                    maximum_backoff_seconds=maximum_backoff_seconds,
                    idle_timeout_seconds=idle_timeout_seconds,
                    jitter=jitter,
                )
            )
        )
        async for message in messages:
            notice = subscription.take(message)
            if notice is not None:
                yield notice


class _Subscription:
    """Opens streams at one collector after the other, and tells what is new in them."""

    def __init__(
        self,
        stubs: Sequence[gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub],
        positions: GpuEventPositions,
        host_id: str,
        *,
        only_new: bool,
    ) -> None:
        self._stubs = stubs
        self._positions = positions
        self._host_id = host_id
        self._only_new = only_new
        self._opened = 0

    async def open(self) -> AsyncGenerator[events_pb2.WatchGpuEventsResponse, None]:
        stub = self._stubs[self._opened % len(self._stubs)]
        self._opened += 1
        request = events_pb2.WatchGpuEventsRequest(
            host_id=self._host_id,
            positions=self._positions.messages(),
            only_new=self._only_new,
        )
        call = stub.WatchGpuEvents(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                raise CallFailed("gpu_metrics", error) from error
            raise
        finally:
            call.cancel()

    def take(self, message: events_pb2.WatchGpuEventsResponse) -> GpuEventNotice | None:
        if not message.HasField("position"):
            # The first heartbeat: where everything starts is known, from now on nothing is old.
            self._only_new = False
            return None
        place = message.position
        if not self._positions.take(place.host_id, place.journal_id, place.sequence):
            return None
        told = message.HasField("event")
        if not told and not message.lost_events:
            return None
        return GpuEventNotice(
            place.host_id,
            place.journal_id,
            place.sequence,
            message.event if told else None,
            message.receive_time.ToDatetime(tzinfo=UTC) if told else None,
            message.lost_events,
        )
