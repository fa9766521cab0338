"""What the evening showed, and whether it held. Pure: everything comes from what was recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gaming.autoscaler.v1 import autoscaler_pb2
from localsuite.game.feed import GameSample, StoryTurn
from localsuite.observe.bus import BusPicture
from localsuite.observe.fleet import TIERS, tier_name
from localsuite.observe.picture import Remark
from localsuite.observe.recording import Recording
from localsuite.targets import TARGETS
from localsuite.view.wording import rule_words

__all__ = ["Check", "Findings", "TierFindings", "find"]

# A moment needs this many seconds of players before its P95 says anything.
_MOST_SHED_AND_FAILED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was expected to hold, and whether it did."""

    name: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True)
class TierFindings:
    """One tier over the evening."""

    sent: int
    completed: int
    cached: int
    fell_back: int
    shed: Mapping[str, int]
    failed: Mapping[str, int]
    most_ready: int
    first_ready: int
    last_ready: int
    moments_measured: int
    moments_within_target: int
    scaled_out: int
    scaled_in: int

    @property
    def share_within_target(self) -> float | None:
        """Share of the moments with players in which the latency target held; None without any."""
        if self.moments_measured == 0:
            return None
        return self.moments_within_target / self.moments_measured


@dataclass(frozen=True, slots=True)
class Findings:
    """The evening in numbers, and the checks on it."""

    tiers: Mapping[str, TierFindings]
    sent: int
    completed: int
    shed: int
    failed: int
    unaccounted: int
    decisions: int
    rules: Mapping[str, int]
    peak_players: int
    most_gpus: int
    average_cost_usd_per_player_month: float | None
    peak_cost_usd_per_player_month: float | None
    budget_usd_per_player_month: float
    story_turns: int
    story_recalled: int
    incidents: Sequence[str]
    restarts: Mapping[str, int]
    bus: str
    checks: Sequence[Check]

    @property
    def held(self) -> bool:
        """True when every check held."""
        return all(check.held for check in self.checks)


def find(
    *,
    recording: Recording,
    game: GameSample | None,
    decisions: Sequence[autoscaler_pb2.Decision],
    story: Sequence[StoryTurn],
    remarks: Sequence[Remark],
    restarts: Mapping[str, int],
    budget_usd_per_player_month: float,
    game_ended_well: bool,
    bus: BusPicture,
) -> Findings:
    """Returns what the evening showed."""
    tiers = {name: _tier(name, recording, game, decisions) for name in TIERS}
    sent = sum(tier.sent for tier in tiers.values())
    completed = sum(tier.completed for tier in tiers.values())
    shed = sum(sum(tier.shed.values()) for tier in tiers.values())
    failed = sum(sum(tier.failed.values()) for tier in tiers.values())
    busiest = max(recording.moments, key=lambda moment: moment.players_online, default=None)
    per_player = None
    if busiest is not None and busiest.players_online:
        per_player = busiest.cost_usd_per_hour / busiest.players_online * 730
    incidents = [remark.text for remark in remarks if remark.kind == "incident"]
    checks = (
        Check(
            "the game ran to its end and every request has an outcome",
            game_ended_well and sent == completed + shed + failed,
            f"{sent:,} sent = {completed:,} answered + {shed:,} turned away + {failed:,} failed"
            + ("" if game_ended_well else "; the game ended early"),
        ),
        Check(
            "players got answers",
            completed > 0 and (shed + failed) <= sent * _MOST_SHED_AND_FAILED_SHARE,
            f"{_percent(completed, sent)} of requests answered; at most "
            f"{_MOST_SHED_AND_FAILED_SHARE:.0%} may be turned away or fail",
        ),
        Check(
            "the autoscaler decided, and said why",
            bool(decisions) and all(decision.summary for decision in decisions),
            f"{len(decisions)} changes, each with a reason",
        ),
        Check(
            "a tier grew and shrank again",
            any(tier.scaled_out and tier.scaled_in for tier in tiers.values()),
            ", ".join(
                f"{name}: {tier.scaled_out} out, {tier.scaled_in} in"
                for name, tier in tiers.items()
            ),
        ),
        Check(
            "the storyteller remembered",
            any(turn.recalled for turn in story) and not any(turn.error for turn in story),
            f"{sum(bool(turn.recalled) for turn in story)} of {len(story)} turns recalled something"
            + "".join(f"; {turn.error}" for turn in story if turn.error)[:300],
        ),
        Check(
            "the game and the suite heard each other",
            bus.from_game.total() > 0 and bus.from_suite.total() > 0 and not bus.dead_letters,
            bus.words,
        ),
        Check(
            "no process died by itself",
            not any(restarts.values()),
            ", ".join(f"{name} {count}" for name, count in restarts.items() if count)
            or "no restarts",
        ),
    )
    return Findings(
        tiers=tiers,
        sent=sent,
        completed=completed,
        shed=shed,
        failed=failed,
        unaccounted=sent - completed - shed - failed,
        decisions=len(decisions),
        rules=dict(Counter(rule_words(decision.rule) for decision in decisions)),
        peak_players=busiest.players_online if busiest is not None else 0,
        most_gpus=max((moment.gpus for moment in recording.moments), default=0),
        average_cost_usd_per_player_month=recording.average_cost_usd_per_player_month,
        peak_cost_usd_per_player_month=per_player,
        budget_usd_per_player_month=budget_usd_per_player_month,
        story_turns=len(story),
        story_recalled=sum(bool(turn.recalled) for turn in story),
        incidents=incidents,
        restarts=dict(restarts),
        bus=bus.words,
        checks=checks,
    )


def _tier(
    name: str,
    recording: Recording,
    game: GameSample | None,
    decisions: Sequence[autoscaler_pb2.Decision],
) -> TierFindings:
    sample = game.tiers[name] if game is not None else None
    target = TARGETS[name]
    readings = [
        reading
        for moment in recording.moments
        if (
            reading := target.measured(
                first_token_seconds=moment.tiers[name].first_token_p95_seconds,
                per_token_seconds=moment.tiers[name].seconds_per_token_p95,
            )
        )
        is not None
    ]
    changes = [decision for decision in decisions if tier_name(decision.tier) == name]
    ready = [moment.tiers[name].ready for moment in recording.moments]
    return TierFindings(
        sent=sample.sent if sample else 0,
        completed=sample.completed if sample else 0,
        cached=sample.cached if sample else 0,
        fell_back=sample.fell_back if sample else 0,
        shed=dict(sample.shed) if sample else {},
        failed=dict(sample.failed) if sample else {},
        most_ready=max(ready, default=0),
        first_ready=ready[0] if ready else 0,
        last_ready=ready[-1] if ready else 0,
        moments_measured=len(readings),
        moments_within_target=sum(reading <= target.limit_seconds for reading in readings),
        scaled_out=sum(change.desired > change.previous_desired for change in changes),
        scaled_in=sum(change.desired < change.previous_desired for change in changes),
    )


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
