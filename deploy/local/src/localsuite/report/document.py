"""The report as a directory: Markdown for people, JSON beside it for programs, and the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from gaming.autoscaler.v1 import autoscaler_pb2
from localsuite.game.feed import StoryTurn
from localsuite.observe.fleet import tier_name
from localsuite.observe.picture import Remark
from localsuite.observe.recording import Recording
from localsuite.report.findings import Findings
from localsuite.report.plots import draw_plots
from localsuite.targets import TARGETS
from localsuite.timing import Evening
from localsuite.view.wording import clock, decision_sentence, money

__all__ = ["SIMULATED", "write_report"]

SIMULATED = (
    "The GPUs, the model servers and the AWS account are simulated on this machine: the model "
    "servers speak vLLM's API and keep its pace (time to first token, time per token, queueing, "
    "KV cache) but invent their words; instances launch, start cold and are interrupted as in the "
    "cloud, at prices from the price list. The four services, PostgreSQL, every gRPC call, the "
    "memory and its search are real."
)


def write_report(
    directory: Path,
    *,
    began: datetime,
    evening: Evening,
    findings: Findings,
    recording: Recording,
    decisions: Sequence[tuple[float, autoscaler_pb2.Decision]],
    story: Sequence[StoryTurn],
    remarks: Sequence[Remark],
    start_seconds: float,
) -> Path:
    """Writes `report.md`, `report.json` and the pictures; returns the Markdown's path."""
    directory.mkdir(parents=True, exist_ok=True)
    draw_plots(directory, recording, remarks, budget=findings.budget_usd_per_player_month)
    document = directory / "report.md"
    document.write_text(
        "\n\n".join(
            [
                f"# An evening of Gamekeeper, {began:%Y-%m-%d %H:%M} UTC",
                _summary(evening, findings, start_seconds),
                "## Did it hold?\n\n" + _checks(findings),
                "## Tiers\n\n" + _tiers(findings),
                "![Players online](players.png)",
                "![GPU servers wanted, starting and ready](gpus.png)",
                "![Latency at P95 against its target](latency.png)",
                "![Cost per player and month](cost.png)",
                "## Decisions\n\n" + _decisions(decisions),
                "## What went wrong on purpose, and other events\n\n" + _remarks(remarks),
                "## The storyteller\n\n" + _story(story),
                "## What is simulated\n\n" + SIMULATED,
            ]
        )
        + "\n"
    )
    (directory / "report.json").write_text(
        json.dumps(
            _as_json(
                evening=evening,
                findings=findings,
                recording=recording,
                decisions=decisions,
                story=story,
                remarks=remarks,
                start_seconds=start_seconds,
            ),
            indent=1,
        )
        + "\n"
    )
    return document


def _summary(evening: Evening, findings: Findings, start_seconds: float) -> str:
    return (
        f"{findings.peak_players:,} players at the peak, {findings.sent:,} requests: "
        f"{findings.completed:,} answered, {findings.shed:,} turned away, {findings.failed:,} "
        f"failed. At most {findings.most_gpus} GPUs at once; "
        f"{money(findings.peak_cost_usd_per_player_month)} per player and month at the peak, "
        f"{money(findings.average_cost_usd_per_player_month)} over the whole evening (budget "
        f"{money(findings.budget_usd_per_player_month)}).\n\n"
        f"The evening stands for an hour and took {evening.duration_seconds:g} s: everything that "
        f"takes minutes in production (the players' comings and goings, cold starts, stabilisation "
        f"windows, the Spot notice, drains) was divided by {evening.time_factor:g}. The pace of "
        "requests and tokens, sampling and RPC deadlines were real. "
        f"Over the event bus went {findings.bus}. "
        f"Seed {evening.seed}; the suite was up {start_seconds:.1f} s after it was started."
    )


def _checks(findings: Findings) -> str:
    return "\n".join(
        f"- {'✔' if check.held else '✘ NOT HELD:'} {check.name} ({check.detail})"
        for check in findings.checks
    )


def _tiers(findings: Findings) -> str:
    lines = [
        (
            "| tier | target at P95 | time within target | sent | answered | from cache "
            "| fell back | turned away | failed | most servers | out / in |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tier in findings.tiers.items():
        share = tier.share_within_target
        lines.append(
            f"| {name} | {TARGETS[name].words} | {'-' if share is None else f'{share:.0%}'} "
            f"| {tier.sent:,} | {tier.completed:,} | {tier.cached:,} | {tier.fell_back:,} "
            f"| {_reasons(tier.shed)} | {_reasons(tier.failed)} | {tier.most_ready} "
            f"| {tier.scaled_out} / {tier.scaled_in} |"
        )
    return "\n".join(lines)


def _reasons(counts: object) -> str:
    if not isinstance(counts, dict) or not counts:
        return "0"
    total = sum(counts.values())
    return f"{total:,} ({', '.join(f'{reason} {count}' for reason, count in counts.items())})"


def _decisions(decisions: Sequence[tuple[float, autoscaler_pb2.Decision]]) -> str:
    if not decisions:
        return "None."
    return "\n".join(
        f"- {clock(at)} {decision_sentence(decision)} (`{decision.decision_id}`)"
        for at, decision in decisions
    )


def _remarks(remarks: Sequence[Remark]) -> str:
    if not remarks:
        return "None."
    return "\n".join(f"- {clock(remark.at_seconds)} {remark.text}" for remark in remarks)


def _story(story: Sequence[StoryTurn]) -> str:
    if not story:
        return "It had no turn."
    parts = []
    for turn in story:
        lines = [f"**{turn.player}**"]
        lines += [f"- remembers: {memory}" for memory in turn.recalled[:3]]
        lines += [f"- lore: {citation}" for citation in turn.citations[:2]]
        lines += [f"- tells: {turn.told}"] if turn.told else []
        lines += [f"- failed: {turn.error}"] if turn.error else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _as_json(
    *,
    evening: Evening,
    findings: Findings,
    recording: Recording,
    decisions: Sequence[tuple[float, autoscaler_pb2.Decision]],
    story: Sequence[StoryTurn],
    remarks: Sequence[Remark],
    start_seconds: float,
) -> dict[str, object]:
    return {
        "evening": {**asdict(evening), "time_factor": evening.time_factor},
        "start_seconds": round(start_seconds, 3),
        "held": findings.held,
        "findings": asdict(findings),
        "decisions": [
            {
                "at_seconds": round(at, 3),
                "decision_id": decision.decision_id,
                "tier": tier_name(decision.tier),
                "previous_desired": decision.previous_desired,
                "desired": decision.desired,
                "rule": autoscaler_pb2.DecisionRule.Name(decision.rule),
                "summary": decision.summary,
            }
            for at, decision in decisions
        ],
        "story": [asdict(turn) for turn in story],
        "events": [asdict(remark) for remark in remarks],
        "moments": [asdict(moment) for moment in recording.moments],
    }
