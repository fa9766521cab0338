"""This service's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ai_router.adapters.openai_model_server import ModelServerTimeouts, Packing
from ai_router.adapters.static_fleet import parse_static_servers
from ai_router.domain.circuit_breaker import BreakerPolicy
from ai_router.domain.fleet import ServerReport
from ai_router.domain.fleet_directory import DirectoryPolicy
from ai_router.domain.routing import RoutingPolicy
from ai_router.domain.tiers import Tier, TierProfile
from ai_router.router import RouterPolicy
from servicekit.channels import ChannelSettings
from servicekit.server import ServerSettings
from servicekit.settings import setting
from servicekit.telemetry import TelemetrySettings

__all__ = ["AiRouterSettings", "TierSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSettings:
    """What one server of each tier carries, and how long callers wait.

    A capacity is the tokens in flight, prompts and expected answers, above which a server is given
    no more: the momentary peak (P95) at the load where the tier's latency target is just met, by
    simulation of the reference hosts (g5.xlarge, g5.2xlarge, c5.4xlarge) with short dialogue. The
    autoscaler plans with the mean at the same load, which is about half of it. What a server really
    carries depends on the length of prompts and on its prefix cache: measure it, and tell both.
    """

    gold_capacity_tokens: int = setting(
        "AI_ROUTER_GOLD_CAPACITY_TOKENS",
        default=8_000,
        minimum=1,
        help="tokens one Gold server carries within its latency target",
    )
    silver_capacity_tokens: int = setting(
        "AI_ROUTER_SILVER_CAPACITY_TOKENS",
        default=11_000,
        minimum=1,
        help="tokens one Silver server carries within its latency target",
    )
    bronze_capacity_tokens: int = setting(
        "AI_ROUTER_BRONZE_CAPACITY_TOKENS",
        default=4_000,
        minimum=1,
        help="tokens one Bronze server carries within its latency target",
    )
    gold_request_limit: int = setting(
        "AI_ROUTER_GOLD_REQUEST_LIMIT",
        default=48,
        minimum=1,
        help="most requests on one Gold server at a time",
    )
    silver_request_limit: int = setting(
        "AI_ROUTER_SILVER_REQUEST_LIMIT",
        default=40,
        minimum=1,
        help="most requests on one Silver server at a time",
    )
    bronze_request_limit: int = setting(
        "AI_ROUTER_BRONZE_REQUEST_LIMIT",
        default=8,
        minimum=1,
        help="most requests on one Bronze server at a time",
    )
    gold_usual_budget_seconds: float = setting(
        "AI_ROUTER_GOLD_USUAL_BUDGET_SECONDS",
        default=10.0,
        minimum=0.1,
        help="how long a Gold caller waits for the whole answer when it does not say",
    )
    silver_usual_budget_seconds: float = setting(
        "AI_ROUTER_SILVER_USUAL_BUDGET_SECONDS",
        default=20.0,
        minimum=0.1,
        help="how long a Silver caller waits for the whole answer when it does not say",
    )
    bronze_usual_budget_seconds: float = setting(
        "AI_ROUTER_BRONZE_USUAL_BUDGET_SECONDS",
        default=90.0,
        minimum=0.1,
        help="how long a Bronze caller waits for the whole answer when it does not say",
    )
    gold_fallback_patience_seconds: float = setting(
        "AI_ROUTER_GOLD_FALLBACK_PATIENCE_SECONDS",
        default=0.25,
        minimum=0,
        help="a longer predicted wait for Gold goes to the tier that stands in",
    )
    silver_fallback_patience_seconds: float = setting(
        "AI_ROUTER_SILVER_FALLBACK_PATIENCE_SECONDS",
        default=1.0,
        minimum=0,
        help="a longer predicted wait for Silver goes to the tier that stands in",
    )
    bronze_fallback_patience_seconds: float = setting(
        "AI_ROUTER_BRONZE_FALLBACK_PATIENCE_SECONDS",
        default=10.0,
        minimum=0,
        help="a longer predicted wait for Bronze goes to the tier that stands in",
    )
    gold_first_token_timeout_seconds: float = setting(
        "AI_ROUTER_GOLD_FIRST_TOKEN_TIMEOUT_SECONDS",
        default=5.0,
        minimum=0.1,
        maximum=120,
        help="a Gold server silent for longer is given up and another tried",
    )
    silver_first_token_timeout_seconds: float = setting(
        "AI_ROUTER_SILVER_FIRST_TOKEN_TIMEOUT_SECONDS",
        default=8.0,
        minimum=0.1,
        maximum=120,
        help="a Silver server silent for longer is given up and another tried",
    )
    bronze_first_token_timeout_seconds: float = setting(
        "AI_ROUTER_BRONZE_FIRST_TOKEN_TIMEOUT_SECONDS",
        default=30.0,
        minimum=0.1,
        maximum=120,
        help="a Bronze server silent for longer is given up and another tried",
    )

    def first_token_timeouts(self) -> Mapping[Tier, float]:
        """Returns how long a server of each tier may be silent before its first token."""
        return {
            Tier.GOLD: self.gold_first_token_timeout_seconds,
            Tier.SILVER: self.silver_first_token_timeout_seconds,
            Tier.BRONZE: self.bronze_first_token_timeout_seconds,
        }

    def profiles(self) -> Mapping[Tier, TierProfile]:
        """Returns the tiers' profiles; the times to start from are those of the reference hosts."""
        return {
            Tier.GOLD: TierProfile(
                capacity_tokens=self.gold_capacity_tokens,
                request_limit=self.gold_request_limit,
                first_token_seconds=0.08,
                token_seconds=0.009,
                usual_budget_seconds=self.gold_usual_budget_seconds,
                fallback_patience_seconds=self.gold_fallback_patience_seconds,
            ),
            Tier.SILVER: TierProfile(
                capacity_tokens=self.silver_capacity_tokens,
                request_limit=self.silver_request_limit,
                first_token_seconds=0.15,
                token_seconds=0.025,
                usual_budget_seconds=self.silver_usual_budget_seconds,
                fallback_patience_seconds=self.silver_fallback_patience_seconds,
            ),
            Tier.BRONZE: TierProfile(
                capacity_tokens=self.bronze_capacity_tokens,
                request_limit=self.bronze_request_limit,
                first_token_seconds=1.5,
                token_seconds=0.08,
                usual_budget_seconds=self.bronze_usual_budget_seconds,
                fallback_patience_seconds=self.bronze_fallback_patience_seconds,
            ),
        }


def _checked_static_servers(text: str) -> tuple[str, ...]:
    parse_static_servers(text)
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class AiRouterSettings:
    """Everything the router can be told."""

    server: ServerSettings
    telemetry: TelemetrySettings
    channel: ChannelSettings
    tiers: TierSettings
    router_id: str = setting(
        "AI_ROUTER_ID", default="", help="name of this router task; empty makes one up at start"
    )
    collector_addresses: tuple[str, ...] = setting(
        "AI_ROUTER_COLLECTOR_ADDRESS",
        default=("127.0.0.1:50061",),
        help="host:port of every metrics collector, comma-separated; one at a time is followed",
    )
    static_servers: tuple[str, ...] = setting(
        "AI_ROUTER_STATIC_SERVERS",
        default=(),
        parse=_checked_static_servers,
        help="comma-separated TIER:MODEL@URL used instead of the collector",
    )
    model_server_api_key: str = setting(
        "AI_ROUTER_MODEL_SERVER_API_KEY",
        default="",
        secret=True,
        help="bearer token for the model servers; empty sends none",
    )
    queue_limit: int = setting(
        "AI_ROUTER_QUEUE_LIMIT",
        default=100,
        minimum=0,
        maximum=10_000,
        help="most requests that wait per tier",
    )
    guest_load_limit: float = setting(
        "AI_ROUTER_GUEST_LOAD_LIMIT",
        default=0.7,
        minimum=0,
        maximum=1,
        help="servers take requests of other tiers up to this share of their capacity",
    )
    attempts: int = setting(
        "AI_ROUTER_ATTEMPTS",
        default=3,
        minimum=1,
        maximum=10,
        help="servers tried before the first token, at most",
    )
    connect_timeout_seconds: float = setting(
        "AI_ROUTER_CONNECT_TIMEOUT_SECONDS",
        default=2.0,
        minimum=0.05,
        maximum=30,
        help="longest wait for a connection to a model server",
    )
    idle_timeout_seconds: float = setting(
        "AI_ROUTER_IDLE_TIMEOUT_SECONDS",
        default=10.0,
        minimum=0.1,
        maximum=120,
        help="longest silence within an answer",
    )
    pieces_per_second: float = setting(
        "AI_ROUTER_PIECES_PER_SECOND",
        default=1500.0,
        minimum=1,
        help="with more answers streaming than this allows, tokens are packed into fewer messages",
    )
    longest_packing_seconds: float = setting(
        "AI_ROUTER_LONGEST_PACKING_SECONDS",
        default=0.1,
        minimum=0,
        maximum=5,
        help="longest time between two messages of an answer that packing may cause; 0 never packs",
    )
    maximum_connections: int = setting(
        "AI_ROUTER_MAXIMUM_CONNECTIONS",
        default=2000,
        minimum=1,
        help="most connections to model servers",
    )
    breaker_failures: int = setting(
        "AI_ROUTER_BREAKER_FAILURES",
        default=3,
        minimum=1,
        help="failures in a row after which a server is left alone; a refused connection suffices",
    )
    breaker_first_pause_seconds: float = setting(
        "AI_ROUTER_BREAKER_FIRST_PAUSE_SECONDS",
        default=1.0,
        minimum=0.01,
        help="how long a failing server is left alone at first; doubles at each failed probe",
    )
    breaker_longest_pause_seconds: float = setting(
        "AI_ROUTER_BREAKER_LONGEST_PAUSE_SECONDS",
        default=30.0,
        minimum=0.01,
        help="longest time a failing server is left alone",
    )
    stale_server_seconds: float = setting(
        "AI_ROUTER_STALE_SERVER_SECONDS",
        default=120.0,
        minimum=0,
        help="a server silent to the collector is used this long while its answers are good",
    )
    interruption_margin_seconds: float = setting(
        "AI_ROUTER_INTERRUPTION_MARGIN_SECONDS",
        default=60.0,
        minimum=0,
        help="this long before the cloud takes a host back its servers get no more requests",
    )
    cache_bytes: int = setting(
        "AI_ROUTER_CACHE_BYTES",
        default=32 * 1024 * 1024,
        minimum=0,
        help="room for answers to deterministic requests; 0 keeps none",
    )
    cache_ttl_seconds: float = setting(
        "AI_ROUTER_CACHE_TTL_SECONDS",
        default=600.0,
        minimum=0,
        help="how long an answer is kept",
    )
    demand_interval_seconds: float = setting(
        "AI_ROUTER_DEMAND_INTERVAL_SECONDS",
        default=1.0,
        minimum=0.05,
        maximum=10,
        help="length of an interval in the demand stream",
    )

    def static_fleet(self) -> tuple[ServerReport, ...]:
        """Returns the servers that are written down; empty when the collector is asked."""
        return parse_static_servers(",".join(self.static_servers))

    def router_policy(self) -> RouterPolicy:
        """Returns the limits of one request's way."""
        return RouterPolicy(
            attempts=self.attempts, first_token_timeout_seconds=self.tiers.first_token_timeouts()
        )

    def routing_policy(self) -> RoutingPolicy:
        """Returns the limits of routing."""
        return RoutingPolicy(queue_limit=self.queue_limit, guest_load_limit=self.guest_load_limit)

    def directory_policy(self) -> DirectoryPolicy:
        """Returns how the feed's word and failures are judged."""
        return DirectoryPolicy(
            stale_use_seconds=self.stale_server_seconds,
            interruption_margin_seconds=self.interruption_margin_seconds,
            breaker=BreakerPolicy(
                failures_to_open=self.breaker_failures,
                first_pause_seconds=self.breaker_first_pause_seconds,
                longest_pause_seconds=self.breaker_longest_pause_seconds,
            ),
        )

    def packing(self) -> Packing:
        """Returns how tokens are packed into messages under load."""
        return Packing(
            pieces_per_second=self.pieces_per_second,
            longest_wait_seconds=self.longest_packing_seconds,
        )

    def timeouts(self) -> ModelServerTimeouts:
        """Returns how long a model server may be silent."""
        return ModelServerTimeouts(
            connect_seconds=self.connect_timeout_seconds,
            idle_seconds=self.idle_timeout_seconds,
        )
