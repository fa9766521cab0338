"""How many players are online when several of the game's services count some of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoscaler.domain.observation import Players

__all__ = ["PlayerShare", "players_in_force"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerShare:
    """Players online of one world as one service counted them.

    `world_id` is empty where the service counts all it knows; `count_time` is Unix seconds.
    """

    source: str
    world_id: str
    online: int
    count_time: float


def players_in_force(
    reported: Players | None, shares: Sequence[PlayerShare], *, now: float, stale_seconds: float
) -> Players | None:
    """Return the count that decisions go by: the newer of the report and the sum of the shares.

    The sum is over the shares that are not stale and is as old as the oldest of them: a service
    that falls silent makes the whole count stale first and is left out of it from then on, as
    soon as another one counts again. With nothing but stale shares, all of them are shown, stale.
    """
    fresh = [share for share in shares if share.count_time > now - stale_seconds]
    counted = fresh or shares
    if not counted:
        return reported
    if reported is not None and reported.count_time >= max(s.count_time for s in counted):
        return reported
    return Players(
        online=sum(share.online for share in counted),
        count_time=min(share.count_time for share in counted),
    )
