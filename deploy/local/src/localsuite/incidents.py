"""Makes go wrong what should: a host killed without warning, a Spot host taken back with notice.

Uses the local cloud's control interface; the suite itself learns of it as it would in production,
by a host that falls silent and by the interruption notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from gaming.gpu_metrics.v1 import fleet_pb2
from localsuite.observe.fleet import TIERS, tier_name
from localsuite.observe.picture import SuitePicture
from localsuite.timing import Evening, Incident

__all__ = ["cause_incidents"]

_DEADLINE_SECONDS = 5.0
_RETRY_SECONDS = 1.0


async def cause_incidents(
    evening: Evening, picture: SuitePicture, aws_url: str, tell: Callable[[str], None]
) -> None:
    """Causes the evening's incidents at their times; `tell` hears what was done.

    An incident that finds nothing to strike (a small evening has no Spot host) waits for a victim
    until the evening ends, and is told as skipped when there is none.
    """
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=_DEADLINE_SECONDS)
    ) as session:
        for incident in evening.incidents():
            await asyncio.sleep(max(0.0, incident.at_seconds - picture.evening_seconds))
            await _cause(incident, evening, picture, session=session, aws_url=aws_url, tell=tell)


async def _cause(
    incident: Incident,
    evening: Evening,
    picture: SuitePicture,
    *,
    session: aiohttp.ClientSession,
    aws_url: str,
    tell: Callable[[str], None],
) -> None:
    give_up_at = incident.at_seconds + evening.duration_seconds * 0.15
    while picture.evening_seconds < give_up_at:
        victim = _victim(picture, spot=incident.kind == "spot_interruption")
        if victim is not None:
            tier, host_id = victim
            spot = incident.kind == "spot_interruption"
            action = "interrupt" if spot else "kill-host"
            try:
                async with session.post(
                    f"{aws_url}/_local/{action}", json={"instance_id": host_id}
                ) as response:
                    if response.ok:
                        how = "Spot host is called back" if spot else "host dies, server and all"
                        tell(f"{tier} {how}: {host_id}")
                        return
            except (TimeoutError, aiohttp.ClientError):
                pass
        await asyncio.sleep(_RETRY_SECONDS)
    tell(f"skipped: nothing to strike ({incident.summary})")


def _victim(picture: SuitePicture, *, spot: bool) -> tuple[str, str] | None:
    """Picks a ready host of the tier with most of them, so that the tier survives it."""
    hosts: dict[str, list[str]] = {name: [] for name in TIERS}
    for host_id, view in sorted(picture.fleet.hosts.items()):
        if spot and view.host.purchase_option != fleet_pb2.PURCHASE_OPTION_SPOT:
            continue
        if view.host.HasField("interruption_time"):
            continue
        for server in view.servers:
            if server.state == fleet_pb2.MODEL_SERVER_STATE_READY and server.tier:
                hosts[tier_name(server.tier)].append(host_id)
    tier = max(TIERS, key=lambda name: len(hosts[name]))
    # A tier's only host is left alone: its players would have nothing at all.
    least = 1 if spot else 2
    return (tier, hosts[tier][0]) if len(hosts[tier]) >= least else None
