"""Between the bus's messages and the domain: players counted, capacity changed."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.message import DecodeError

from autoscaler.adapters.proto_tiers import WIRE_OF_TIER
from autoscaler.domain.decision import DecisionRecord, Outcome
from autoscaler.domain.player_counts import PlayerShare
from gaming.events import events_pb2 as pb
from messaging.codec import new_event
from messaging.errors import PoisonEvent, PoisonReason

__all__ = ["SOURCE", "capacity_message", "player_share"]

SOURCE = "autoscaler"

_WORLD_ID = "world_id"
# As ReportPlayers takes them.
_MOST_PLAYERS = 10_000_000
_MOST_DIGITS = len(str(_MOST_PLAYERS))
_LARGEST_COUNT_LEAD_SECONDS = 60.0


def capacity_message(record: DecisionRecord) -> pb.GameEvent | None:
    """Return what the bus is told of a decision; None when no size was changed by it.

    The event's id is the decision's, so that telling it twice is telling it once.
    """
    decision = record.decision
    if record.outcome is not Outcome.APPLIED or decision.desired == decision.previous_desired:
        return None
    return new_event(
        pb.CAPACITY_CHANGED,
        pb.CapacityChangedEvent(
            decision_id=record.decision_id,
            tier=WIRE_OF_TIER[decision.tier],
            previous_desired=decision.previous_desired,
            desired=decision.desired,
            ready_servers=decision.inputs.ready_servers,
            rule=decision.rule.value,
            reason=decision.summary,
        ),
        source=SOURCE,
        event_id=record.decision_id,
        timestamp_milliseconds=round(record.decide_time * 1000),
        metadata={},
    )


def player_share(
    message: pb.GameEvent, *, state_key: str, sources: Collection[str], now: float
) -> PlayerShare | None:
    """Return the players that an event counts; None when it counts none, or is not to be heard.

    Args:
        message: any event of the bus.
        state_key: the key of the world's state that holds the count.
        sources: services whose counts are taken; empty means every service's.
        now: Unix seconds; the time of a count without one.

    Raises:
        PoisonEvent: the count is no number of players, is of a later moment than now, or the names
            beside it cannot be kept.
    """
    if message.event_type != pb.WORLD_STATE_UPDATED:
        return None
    if sources and message.source not in sources:
        return None
    try:
        state = pb.StateUpdate.FromString(message.payload).state
    except DecodeError:
        raise PoisonEvent(PoisonReason.BAD_PAYLOAD) from None
    if state_key not in state:
        return None
    text = state[state_key].strip()
    # Nothing but the digits 0 to 9: `int` also reads signs, underscores and other scripts' digits.
    is_count = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    count_time = message.timestamp / 1000 if message.timestamp > 0 else now
    world_id = message.metadata.get(_WORLD_ID, "")
    if (
        not is_count
        or int(text) > _MOST_PLAYERS
        or count_time > now + _LARGEST_COUNT_LEAD_SECONDS
        or not (message.source + world_id).isprintable()
    ):
        raise PoisonEvent(PoisonReason.BAD_PAYLOAD)
    return PlayerShare(
        source=message.source,
        world_id=world_id,
        online=int(text),
        count_time=count_time,
    )
