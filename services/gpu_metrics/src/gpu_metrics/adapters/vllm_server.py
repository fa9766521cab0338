"""One vLLM server, read from its `/health` and `/metrics` pages."""

from dataclasses import dataclass

import aiohttp

from gpu_metrics.adapters.http_page import fetch_page
from gpu_metrics.domain.readings import MissingReason, ModelServerReading, ModelServerState, Tier
from gpu_metrics.domain.vllm_exposition import VllmMetrics, parse_vllm_metrics
from servicekit.clock import Clock

__all__ = ["ScrapedServer", "VllmServer"]

_LONGEST_MODEL_NAME = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapedServer:
    """What is known of a server before it answers.

    `scrape_url` is where the agent reaches it, `endpoint_url` where everybody else does. An empty
    `model` is filled in from the server's metrics.
    """

    server_id: str
    tier: Tier
    scrape_url: str
    endpoint_url: str
    model: str = ""
    gpu_uuids: tuple[str, ...] = ()


class VllmServer:
    """Scrapes one server over a shared HTTP session.

    A server that has not answered its health check yet is starting, for at most
    `startup_limit_seconds`; after that, or once it was ready, it is unhealthy instead. A ready
    server that answers late is given `patience` more tries before it counts as unhealthy: a busy
    one is slow now and then, while one that refuses or drops connections is gone at once.
    """

    def __init__(
        self,
        server: ScrapedServer,
        session: aiohttp.ClientSession,
        *,
        clock: Clock,
        timeout_seconds: float = 0.5,
        startup_limit_seconds: float = 1800.0,
        patience: int = 2,
    ) -> None:
        self._server = server
        self._session = session
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._startup_ends_at = clock.monotonic() + startup_limit_seconds
        self._was_ready = False
        self._patience = patience
        self._late_answers = 0
        self._model = server.model

    @property
    def server_id(self) -> str:
        """Return the server's stable name."""
        return self._server.server_id

    @property
    def scrape_url(self) -> str:
        """Return where the agent reaches it."""
        return self._server.scrape_url

    @property
    def model(self) -> str:
        """Return the model it serves, empty until it has said so."""
        return self._model

    async def read_server(self) -> ModelServerReading:
        """Return the server's state and figures; at most two timeouts long, never raising."""
        healthy = await self._fetch("/health")
        if isinstance(healthy, MissingReason):
            metrics: VllmMetrics | MissingReason = healthy
            state = self._state_while_silent(healthy)
        else:
            self._was_ready = True
            self._late_answers = 0
            state = ModelServerState.READY
            page = await self._fetch("/metrics")
            metrics = page if isinstance(page, MissingReason) else parse_vllm_metrics(page)
        return self._reading(state, metrics)

    def _state_while_silent(self, reason: MissingReason) -> ModelServerState:
        if self._was_ready and reason is MissingReason.TIMEOUT:
            self._late_answers += 1
            if self._late_answers <= self._patience:
                return ModelServerState.READY
        if self._was_ready or self._clock.monotonic() >= self._startup_ends_at:
            return ModelServerState.UNHEALTHY
        return ModelServerState.STARTING

    def _reading(
        self, state: ModelServerState, metrics: VllmMetrics | MissingReason
    ) -> ModelServerReading:
        server = self._server
        if isinstance(metrics, MissingReason):
            metrics = VllmMetrics(
                model="",
                running_requests=metrics,
                waiting_requests=metrics,
                kv_cache_usage_permille=metrics,
                kv_cache_capacity_tokens=metrics,
                prompt_tokens_total=metrics,
                generation_tokens_total=metrics,
                time_to_first_token=metrics,
                inter_token_latency=metrics,
            )
        # A name that is cut would be another model's; one too long for a report is none.
        if len(metrics.model) <= _LONGEST_MODEL_NAME and metrics.model.isprintable():
            self._model = self._model or metrics.model
        return ModelServerReading(
            server_id=server.server_id,
            endpoint_url=server.endpoint_url,
            tier=server.tier,
            model=self._model,
            state=state,
            running_requests=metrics.running_requests,
            waiting_requests=metrics.waiting_requests,
            kv_cache_usage_permille=metrics.kv_cache_usage_permille,
            kv_cache_capacity_tokens=metrics.kv_cache_capacity_tokens,
            prompt_tokens_total=metrics.prompt_tokens_total,
            generation_tokens_total=metrics.generation_tokens_total,
            time_to_first_token=metrics.time_to_first_token,
            inter_token_latency=metrics.inter_token_latency,
            gpu_uuids=server.gpu_uuids,
        )

    async def _fetch(self, path: str) -> str | MissingReason:
        """Return the page, or why it could not be had."""
        return await fetch_page(self._session, self._server.scrape_url + path, self._timeout)
