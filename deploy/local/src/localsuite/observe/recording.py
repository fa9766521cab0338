"""The evening as a series of moments, for the report. Pure but for the picture it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from localsuite.game.feed import TierSample
from localsuite.observe.fleet import TIERS
from localsuite.observe.picture import SuitePicture

__all__ = ["HOURS_PER_MONTH", "Moment", "Recording", "TierMoment"]

HOURS_PER_MONTH = 730


@dataclass(frozen=True, slots=True)
class TierMoment:
    """One tier at one moment: sizes as the autoscaler counts, latencies as players felt them."""

    desired: int
    ready: int
    pending: int
    draining: int
    queued: int
    first_token_p95_seconds: float | None
    seconds_per_token_p95: float | None


@dataclass(frozen=True, slots=True)
class Moment:
    """The suite at one moment of the evening."""

    at_seconds: float
    players_online: int
    gpus: int
    cost_usd_per_hour: float
    tiers: Mapping[str, TierMoment]


@dataclass(slots=True)
class Recording:
    """The moments of one evening, in order, about two a second."""

    moments: list[Moment] = field(default_factory=list)

    def take(self, picture: SuitePicture) -> None:
        """Adds the picture as it is now."""
        game_tiers = picture.game.tiers if picture.game is not None else {}
        tiers = {}
        for name in TIERS:
            tier = picture.autoscaler_tiers.get(name)
            router = picture.router_tiers.get(name)
            game = game_tiers.get(name, TierSample())
            tiers[name] = TierMoment(
                desired=tier.desired if tier is not None else 0,
                ready=tier.inputs.ready_servers if tier is not None else 0,
                pending=tier.inputs.pending_servers if tier is not None else 0,
                draining=tier.inputs.draining_servers if tier is not None else 0,
                queued=router.queued_requests if router is not None else 0,
                first_token_p95_seconds=game.first_token_p95_seconds,
                seconds_per_token_p95=game.seconds_per_token_p95,
            )
        self.moments.append(
            Moment(
                at_seconds=picture.evening_seconds,
                players_online=picture.game.players_online if picture.game is not None else 0,
                gpus=picture.fleet.gpus,
                cost_usd_per_hour=picture.status.cost_usd_per_hour if picture.status else 0.0,
                tiers=tiers,
            )
        )

    @property
    def average_cost_usd_per_player_month(self) -> float | None:
        """The evening's cost per player online, for a month of such hours; None without players."""
        players = sum(moment.players_online for moment in self.moments)
        if players == 0:
            return None
        cost = sum(moment.cost_usd_per_hour for moment in self.moments)
        return cost / players * HOURS_PER_MONTH
