"""A fleet that is written down rather than discovered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

from ai_router.domain.fleet import FleetView, ServerReport
from ai_router.domain.tiers import Tier
from servicekit.clock import Clock

__all__ = ["StaticFleetSource", "parse_static_servers"]

_CONFIRM_SECONDS = 1.0


def parse_static_servers(text: str) -> tuple[ServerReport, ...]:
    """Returns the servers in `text`, comma-separated entries `TIER:MODEL@URL`.

    A server's name is its host and port. Example: `gold:llama-3b@http://10.0.3.7:8000`.

    Raises:
        ValueError: naming the entry that is wrong and what is allowed.
    """
    reports: dict[str, ServerReport] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        tier_name, colon, rest = entry.partition(":")
        model, at, url = rest.rpartition("@")
        parts = urlsplit(url)
        known = tier_name.upper() in Tier.__members__
        if not (colon and at and known and model and parts.scheme in ("http", "https")):
            raise ValueError(f"'{entry}' is not TIER:MODEL@URL with TIER gold, silver or bronze")
        if not parts.netloc or parts.path not in ("", "/") or parts.query:
            raise ValueError(f"'{entry}' needs a URL of scheme, host and port only")
        if parts.netloc in reports:
            raise ValueError(f"'{entry}' names a server twice")
        reports[parts.netloc] = ServerReport(
            server_id=parts.netloc, endpoint_url=url, tier=Tier[tier_name.upper()], model=model
        )
    return tuple(reports.values())


class StaticFleetSource:
    """Yields the same servers for ever; which of them work is found out by the router itself."""

    def __init__(self, servers: Sequence[ServerReport], clock: Clock) -> None:
        self._servers = tuple(servers)
        self._clock = clock

    async def views(self) -> AsyncIterator[FleetView | None]:
        """Yields the servers, then None again and again."""
        yield FleetView(self._servers)
        while True:
            await self._clock.sleep(_CONFIRM_SECONDS)
            yield None
