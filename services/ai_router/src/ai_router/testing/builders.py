"""Short ways to make routing objects; every argument has a plain default."""

from __future__ import annotations

from typing import Any

from ai_router.domain.fleet import FleetView, ServerReport
from ai_router.domain.fleet_directory import DirectoryPolicy, FleetDirectory
from ai_router.domain.generation import ChatMessage, ChatRole, GenerationRequest
from ai_router.domain.routing import RoutingDesk, RoutingPolicy
from ai_router.domain.tiers import Tier, TierProfile

__all__ = ["CAPACITY_TOKENS", "desk", "directory", "profile", "report", "request", "view"]

CAPACITY_TOKENS = 1000
"""What every server carries."""


def profile(**changes: Any) -> TierProfile:
    """Returns a small tier profile."""
    values: dict[str, Any] = {
        "capacity_tokens": CAPACITY_TOKENS,
        "request_limit": 8,
        "first_token_seconds": 0.1,
        "token_seconds": 0.01,
        "usual_budget_seconds": 10.0,
        "fallback_patience_seconds": 1.0,
    }
    return TierProfile(**(values | changes))


def report(server_id: str, tier: Tier = Tier.GOLD, **changes: Any) -> ServerReport:
    """Returns a report of a ready server."""
    values: dict[str, Any] = {
        "endpoint_url": f"http://{server_id}",
        "model": f"{tier.name.lower()}-model",
    }
    return ServerReport(server_id=server_id, tier=tier, **(values | changes))


def view(*reports: ServerReport) -> FleetView:
    """Returns a view of these servers."""
    return FleetView(reports)


def directory(**changes: Any) -> FleetDirectory:
    """Returns an empty directory; arguments change its policy."""
    return FleetDirectory({tier: profile() for tier in Tier}, DirectoryPolicy(**changes))


def desk(
    *reports: ServerReport,
    queue_limit: int = 3,
    guest_load_limit: float = 0.7,
    **profile_changes: Any,
) -> RoutingDesk:
    """Returns a desk whose fleet is `reports`; other arguments change policy and profiles."""
    profiles = {tier: profile(**profile_changes) for tier in Tier}
    made = RoutingDesk(
        FleetDirectory(profiles, DirectoryPolicy()),
        profiles,
        RoutingPolicy(queue_limit=queue_limit, guest_load_limit=guest_load_limit),
    )
    if reports:
        made.directory.apply(view(*reports), 0.0)
    return made


def request(text: str = "Hail, ferryman!", **changes: Any) -> GenerationRequest:
    """Returns a request of one user message, for Gold unless told otherwise."""
    values: dict[str, Any] = {
        "request_id": "r",
        "messages": (ChatMessage(ChatRole.USER, text),),
        "tier": Tier.GOLD,
        "max_output_tokens": 100,
    }
    return GenerationRequest(**(values | changes))
