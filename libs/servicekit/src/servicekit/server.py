"""The gRPC server every service runs, with health, reflection, channelz and the interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc.aio
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from servicekit.beginning_probe import BeginningProbe
from servicekit.clock import Clock
from servicekit.eager_server import EagerServer
from servicekit.interceptors.access_log import AccessLogInterceptor
from servicekit.interceptors.arrival import ArrivalInterceptor
from servicekit.interceptors.authorisation import AuthorisationInterceptor
from servicekit.interceptors.call import Interceptor, RequestCheck
from servicekit.interceptors.chain import InterceptorChain
from servicekit.interceptors.deadline import DeadlineInterceptor
from servicekit.interceptors.errors import ErrorInterceptor
from servicekit.interceptors.limits import LimitInterceptor
from servicekit.interceptors.plain_requests import PlainlyFit, PlainRequests
from servicekit.interceptors.rates import (
    IdentityRateInterceptor,
    RateSettings,
    WorldRateCheck,
)
from servicekit.interceptors.shedding import SheddingInterceptor
from servicekit.interceptors.telemetry import TelemetryInterceptor
from servicekit.interceptors.texts import TextCheck
from servicekit.interceptors.validation import RequestValidator
from servicekit.load_shedding import LoadShedder
from servicekit.method_policies import (
    DEADLINE_SECONDS,
    DeadlineClass,
    MethodDeclaration,
    declarations_of,
)
from servicekit.settings import SettingsError, setting
from servicekit.telemetry import Telemetry
from servicekit.tls import TlsSettings, host_of, is_loopback
from servicekit.transport_limits import (
    MAXIMUM_MESSAGE_BYTES,
    MAXIMUM_METADATA_BYTES,
    STREAMS_PER_CONNECTION,
)
from servicekit.undecodable_paths import answer_undecodable_paths

__all__ = ["RpcServer", "ServerSettings", "ServiceRegistration"]

log = structlog.get_logger(__name__)

_HEALTH_NEWS_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where and how much a service serves."""

    tls: TlsSettings
    rates: RateSettings
    listen_address: str = setting(
        "GAMEKEEPER_LISTEN_ADDRESS",
        default="127.0.0.1:0",
        help="host:port to serve on; port 0 takes a free one",
    )
    admin_address: str = setting(
        "GAMEKEEPER_ADMIN_ADDRESS",
        default="",
        help="loopback host:port for channelz; empty serves none",
    )
    maximum_calls: int = setting(
        "GAMEKEEPER_MAX_CONCURRENT_CALLS",
        default=500,
        minimum=1,
        maximum=100_000,
        help="calls handled at once; more get RESOURCE_EXHAUSTED",
    )
    maximum_streams: int = setting(
        "GAMEKEEPER_MAX_CONCURRENT_STREAMS",
        default=500,
        minimum=1,
        maximum=100_000,
        help="subscriptions served at once; more get RESOURCE_EXHAUSTED",
    )
    reader_patience_seconds: float = setting(
        "GAMEKEEPER_READER_PATIENCE_SECONDS",
        default=20.0,
        minimum=0.1,
        maximum=3600,
        help="how long a stream's reader may take no message; then it is dropped",
    )
    connection_age_seconds: float = setting(
        "GAMEKEEPER_CONNECTION_AGE_SECONDS",
        default=300.0,
        minimum=0.1,
        maximum=86_400,
        help="age at which clients are asked to connect anew, so that calls spread over replicas",
    )
    shed_wait_seconds: float = setting(
        "GAMEKEEPER_SHED_WAIT_SECONDS",
        default=0.25,
        minimum=0.01,
        maximum=3600,
        help="calls that wait this long to begin make the server turn some away",
    )
    drain_seconds: float = setting(
        "GAMEKEEPER_DRAIN_SECONDS",
        default=20.0,
        minimum=0,
        maximum=600,
        help="how long running calls may finish after SIGTERM",
    )

    def problems(self) -> list[str]:
        """Returns a line for everything that single settings cannot see."""
        found = self.tls.problems()
        if not self.tls.enabled and not is_loopback(self.listen_address):
            found.append(
                f"GAMEKEEPER_LISTEN_ADDRESS='{self.listen_address}' is wrong: plaintext is served "
                "on loopback only; set the GAMEKEEPER_TLS_* files to serve on other addresses"
            )
        if self.admin_address and not is_loopback(self.admin_address):
            found.append(
                f"GAMEKEEPER_ADMIN_ADDRESS='{self.admin_address}' is wrong: must be on loopback"
            )
        return found


@dataclass(frozen=True, slots=True)
class ServiceRegistration:
    """A servicer and how to add it to a server.

    `plainly_fit` tells of requests, by their type, whether they certainly keep their proto's rules
    and hold nothing but fit text; only those for which it says no are checked at length.
    """

    full_name: str
    add_to_server: Callable[[grpc.aio.Server], None]
    declarations: tuple[MethodDeclaration, ...]
    plainly_fit: Mapping[type, PlainlyFit] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        add_function: Callable[[Any, Any], None],
        servicer: object,
        descriptor: ServiceDescriptor,
        plainly_fit: Mapping[type, PlainlyFit] | None = None,
    ) -> Self:
        """Returns the registration of `servicer` by its generated `add_…_to_server` function.

        Raises:
            ValueError: when a method of the service declares no policy in its proto.
        """
        return cls(
            full_name=descriptor.full_name,
            add_to_server=lambda server: add_function(servicer, server),
            declarations=tuple(declarations_of(descriptor)),
            plainly_fit=plainly_fit or {},
        )


class RpcServer:
    """Serves `registrations` with everything a service of the suite has.

    Use as an async context manager, or call `start` and `stop`. It starts NOT_SERVING; call
    `set_serving(True)` once the service can do its work.
    """

    def __init__(
        self,
        registrations: Sequence[ServiceRegistration],
        settings: ServerSettings,
        *,
        clock: Clock,
        telemetry: Telemetry | None = None,
        log_all_calls: bool = False,
        on_out_of_memory: Callable[[], None] = lambda: None,
    ) -> None:
        problems = settings.problems()
        if problems:
            raise SettingsError(problems)
        self._settings = settings
        self._names = [registration.full_name for registration in registrations]
        declarations = {
            item.path: item for registration in registrations for item in registration.declarations
        }
        largest_cost = max((item.cost for item in declarations.values()), default=1)
        telemetry = telemetry or Telemetry("test")
        self._shedding = SheddingInterceptor(LoadShedder(target_seconds=settings.shed_wait_seconds))
        self._shedding_task: asyncio.Task[None] | None = None
        # The order is the order in which a call passes; the first sees it first and last.
        interceptors: list[Interceptor] = [
            TelemetryInterceptor(telemetry, clock),
            AccessLogInterceptor(clock, log_all=log_all_calls),
            ErrorInterceptor(on_out_of_memory),
            # First of all that refuse, since it must cost an overloaded server next to nothing.
            self._shedding,
            AuthorisationInterceptor(mutual_tls=settings.tls.enabled),
            DeadlineInterceptor(),
            ArrivalInterceptor(),
            LimitInterceptor(
                maximum_calls=settings.maximum_calls, maximum_streams=settings.maximum_streams
            ),
            # Behind the admission limit: what an overloaded server refuses costs nobody's budget.
            IdentityRateInterceptor(settings.rates, clock, largest_cost=largest_cost),
        ]
        # These come last: they need the decoded messages, so the chain itself calls them.
        checks: list[RequestCheck] = [
            PlainRequests(
                {
                    kind: tells
                    for registration in registrations
                    for kind, tells in registration.plainly_fit.items()
                },
                [RequestValidator(), TextCheck()],
            ),
            WorldRateCheck(settings.rates, clock, largest_cost=largest_cost),
        ]
        self._chain = InterceptorChain(
            interceptors,
            checks,
            declarations,
            clock,
            reader_patience_seconds=settings.reader_patience_seconds,
        )
        if not answer_undecodable_paths():
            log.warning("undecodable_paths_unanswered", grpc_version=grpc.__version__)
        self._server: grpc.aio.Server = EagerServer(  # type: ignore[assignment]  # the stubs name no concrete server
            [self._chain], _server_options(settings), on_gave_way=self._shedding.note_gave_way
        )
        self._probe = BeginningProbe(self._server)
        for registration in registrations:
            registration.add_to_server(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self._admin: grpc.aio.Server | None = None
        self._started = False
        self._stopped = False
        self.port = 0
        self.admin_port = 0

    @property
    def address(self) -> str:
        """Where the server listens, as `host:port`; known once it has started."""
        host = host_of(self._settings.listen_address)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Binds and serves, with health NOT_SERVING.

        Raises:
            SettingsError: when the address is taken or not of this machine.
        """
        tls = self._settings.tls
        credentials = tls.server_credentials() if tls.enabled else None
        self.port = _bind(
            self._server, "GAMEKEEPER_LISTEN_ADDRESS", self._settings.listen_address, credentials
        )
        if self._settings.admin_address:
            self._admin = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            channelz.add_channelz_servicer(self._admin)
            self.admin_port = _bind(
                self._admin, "GAMEKEEPER_ADMIN_ADDRESS", self._settings.admin_address, None
            )
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._started = True
        self._shedding_task = asyncio.create_task(self._shedding.run(self._probe.wait_seconds))
        await self._server.start()
        if self._admin is not None:
            await self._admin.start()
        if not tls.enabled:
            log.warning(
                "serving_plaintext",
                address=self.address,
                explanation="no GAMEKEEPER_TLS_* files are set; only loopback is served",
            )
        log.info("server_started", address=self.address, services=self._names)

    async def set_serving(self, serving: bool) -> None:
        """Tells health checks whether the service can do its work."""
        state = health_pb2.HealthCheckResponse
        await self._set_health(state.SERVING if serving else state.NOT_SERVING)

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Turns health to NOT_SERVING, ends streams, lets calls finish, closes.

        A second stop cuts the first one's drain short when it allows less time; on a stopped
        server it does nothing.
        """
        if not self._started or self._stopped:
            return
        await self._health.enter_graceful_shutdown()
        self._chain.end_streams()
        grace = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        # Whoever watches health gets the news before the connection goes.
        await asyncio.sleep(min(grace, _HEALTH_NEWS_SECONDS))
        self._chain.end_streams(foreign=True)
        await self._server.stop(grace)
        if self._admin is not None:
            await self._admin.stop(0)
        if self._shedding_task is not None:
            self._shedding_task.cancel()
            await asyncio.wait({self._shedding_task})
        await self._probe.close()
        if not self._stopped:
            self._stopped = True
            log.info("server_stopped", services=self._names)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _set_health(self, state: int) -> None:
        for name in ["", *self._names]:
            await self._health.set(name, state)


def _bind(
    server: grpc.aio.Server,
    variable: str,
    address: str,
    credentials: grpc.ServerCredentials | None,
) -> int:
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise SettingsError(
            [
                (
                    f"{variable}='{address}' cannot be served: another process has the port, or "
                    "the address is not of this machine"
                )
            ]
        )
    return port


def _server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    longest_stream_milliseconds = round(DEADLINE_SECONDS[DeadlineClass.STREAM] * 1000)
    pending = max(STREAMS_PER_CONNECTION, settings.maximum_calls // 3)
    return [
        ("grpc.max_receive_message_length", MAXIMUM_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAXIMUM_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAXIMUM_METADATA_BYTES * 2),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        # Calls that no task has taken up yet. Each holds 15 kB and makes the calls behind it wait:
        # of 5,000 opened at once gRPC's own 3,000 cost 46 MB and made others wait for 4 s. gRPC
        # ends more with CANCELLED, without a word of ours; so no fewer than one connection brings.
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        # Silent connections are to be gone after 5 s; timers are late on a busy machine.
        ("grpc.server_handshake_timeout_ms", 4_000),
        ("grpc.max_connection_age_ms", round(settings.connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", longest_stream_milliseconds),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # Keepalive alone notices a frozen peer only after 10-25 s.
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Counting strikes costs gRPC 1.82 time that grows with the square of the pings: 200,000
        # of them, 3.4 MB sent in 10 ms, kept a core busy for more than 15 s. Answering them takes
        # 0.1 s.
        ("grpc.http2.max_ping_strikes", 0),
        # Two servers on one port would share its calls at random.
        ("grpc.so_reuseport", 0),
        # These probes are pings too: behind a large message on a slow link their answer comes too
        # late, and the connection would be given up although data flows.
        ("grpc.http2.bdp_probe", 0),
    ]
