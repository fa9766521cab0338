"""Which processes make up the suite, in which order, with which settings.

Production values stand here in production's seconds; `Evening.shortened` divides them by the run's
one time factor. What is not shortened is real: request and token pace, sampling, RPC deadlines.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from localsuite.aws.event_bus import (
    DEAD_LETTERS_SUFFIX,
    OBSERVER_QUEUE,
    QUEUES,
    queue_url,
    topic_arn,
)
from localsuite.data_directory import DataDirectory
from localsuite.options import RunOptions
from localsuite.ports import Ports
from localsuite.postgres import EmbeddedPostgres
from localsuite.supervision.child import ChildSpec
from localsuite.supervision.components import PostgresComponent, ProcessComponent
from localsuite.supervision.probes import grpc_health, http_health
from localsuite.supervision.supervisor import Supervisor
from localsuite.timing import Evening
from messaging.settings import MessagingSettings
from servicekit.settings import load_settings

__all__ = ["SERVICES", "SHORTENED_SETTINGS", "SuitePlan"]

SERVICES = ("gpu_metrics", "autoscaler", "ai_router", "knowledge_base")

# The settings that are minutes in production, with their production values in seconds. They are the
# services' own defaults but for the collector's expiry, which production sets to minutes as well.
SHORTENED_SETTINGS: Mapping[str, Mapping[str, float]] = {
    "gpu_metrics": {"GPU_METRICS_EXPIRE_AFTER_SECONDS": 300.0},
    "autoscaler": {
        "AUTOSCALER_SMOOTHING_SECONDS": 30.0,
        "AUTOSCALER_TREND_SECONDS": 120.0,
        "AUTOSCALER_LEARNING_SECONDS": 300.0,
        "AUTOSCALER_PANIC_WINDOW_SECONDS": 60.0,
        "AUTOSCALER_STABILIZATION_SECONDS": 300.0,
        "AUTOSCALER_SCALE_IN_INTERVAL_SECONDS": 60.0,
        "AUTOSCALER_IDLE_TO_ZERO_SECONDS": 900.0,
        "AUTOSCALER_DRAIN_DEADLINE_SECONDS": 120.0,
        "AUTOSCALER_INTERRUPTION_DRAIN_LEAD_SECONDS": 45.0,
        "AUTOSCALER_INTERRUPTION_MARGIN_SECONDS": 10.0,
        "AUTOSCALER_UNRESPONSIVE_GRACE_SECONDS": 60.0,
        "AUTOSCALER_GOLD_START_SECONDS": 120.0,
        "AUTOSCALER_SILVER_START_SECONDS": 150.0,
        "AUTOSCALER_BRONZE_START_SECONDS": 120.0,
    },
    "ai_router": {"AI_ROUTER_INTERRUPTION_MARGIN_SECONDS": 60.0},
}

# Below these a shortened value would be finer than the sampling, which stays real (seconds).
_LEAST_SECONDS = {
    "GPU_METRICS_EXPIRE_AFTER_SECONDS": 8.0,
    "AUTOSCALER_UNRESPONSIVE_GRACE_SECONDS": 2.0,
    # It averages over requests, whose pace is real: Bronze ones alone run for half a minute.
    "AUTOSCALER_LEARNING_SECONDS": 20.0,
    # A server is drained until its answers are whole, and those keep their pace too.
    "AUTOSCALER_DRAIN_DEADLINE_SECONDS": 15.0,
    "AUTOSCALER_SMOOTHING_SECONDS": 1.0,
    "AUTOSCALER_TREND_SECONDS": 1.0,
}

_KNOWLEDGE_BASE_ROLE = "knowledge_base_service"
_REGION = "us-east-1"
_READERS = {"knowledge_base": "knowledge-base-events", "autoscaler": "autoscaler-events"}


class SuitePlan:
    """The processes of one run and the settings of each."""

    def __init__(
        self, options: RunOptions, evening: Evening, data: DataDirectory, ports: Ports
    ) -> None:
        self._options = options
        self._evening = evening
        self._data = data
        self._ports = ports
        self._postgres = EmbeddedPostgres(data.postgres, port=ports.postgres)
        self._logs: dict[str, Path] = {}
        # Tells whose a process is, whatever its command line.
        self._of_this_run = {"GAMEKEEPER_RUN": str(os.getpid())}

    @property
    def database_directory(self) -> Path:
        """Where the database lies; known once it has started."""
        return self._postgres.location

    def add_components(self, supervisor: Supervisor) -> None:
        """Adds everything but the game, each after what it needs to start."""
        supervisor.add(PostgresComponent(self._postgres, ("autoscaler", "knowledge_base")))
        supervisor.add(self._aws())
        supervisor.add(self._service("knowledge_base"), after=("postgres",))
        supervisor.add(self._service("gpu_metrics", "collector"))
        supervisor.add(self._service("ai_router"))
        supervisor.add(self._service("autoscaler"), after=("postgres", "aws"))
        supervisor.add(self._fleet(), after=("aws", "gpu_metrics"))

    def game(self) -> ChildSpec:
        """Returns how to run the game."""
        address = self._ports.address
        return ChildSpec(
            "game",
            "localsuite.game",
            log_file=self._data.fresh_log("game"),
            environment={
                **self._of_this_run,
                **self._aws_settings(),
                "GAMEKEEPER_EVENTS_TOPIC_ARN": topic_arn(_REGION),
                "LOCALSUITE_GAME_ROUTER": address("ai_router"),
                "LOCALSUITE_GAME_AUTOSCALER": address("autoscaler"),
                "LOCALSUITE_GAME_KNOWLEDGE_BASE": address("knowledge_base"),
                "LOCALSUITE_GAME_PLAYERS": str(self._options.players),
                "LOCALSUITE_GAME_SECONDS": str(self._evening.duration_seconds),
                "LOCALSUITE_GAME_SEED": str(self._options.seed),
            },
            capture_output=True,
        )

    def bus_of_command_line(self) -> dict[str, str]:
        """Returns the variables with which the command line reaches this run's event bus."""
        settings = self._aws_settings()
        # Where a user's own profiles lie is the user's affair, also in this run's terminal.
        del settings["AWS_CONFIG_FILE"], settings["AWS_SHARED_CREDENTIALS_FILE"]
        return {**settings, "GAMEKEEPER_EVENTS_TOPIC_ARN": topic_arn(_REGION)}

    def observer(self) -> MessagingSettings:
        """Returns the settings of a reader that hears everything on the event bus."""
        return load_settings(
            MessagingSettings, {**self._aws_settings(), **self._reader_settings(OBSERVER_QUEUE)}
        )

    def dead_letter_queues(self) -> list[str]:
        """Returns the addresses of all dead letters' queues."""
        return [queue_url(self._aws_url, each.name + DEAD_LETTERS_SUFFIX) for each in QUEUES]

    # --- the simulated outside world --------------------------------------------------------------

    def _aws(self) -> ProcessComponent:
        def spec() -> ChildSpec:
            return ChildSpec(
                "aws",
                "localsuite.aws",
                log_file=self._log_file("aws"),
                environment=self._of_this_run,
                arguments=(
                    f"--port={self._ports.aws}",
                    f"--time-compression={self._evening.time_factor}",
                    f"--seed={self._options.seed}",
                    "--seed-account",
                ),
            )

        return ProcessComponent("aws", spec, http_health(f"{self._aws_url}/_local"))

    def _fleet(self) -> ProcessComponent:
        def spec() -> ChildSpec:
            return ChildSpec(
                "fleet",
                "localsuite.fleet",
                log_file=self._log_file("fleet"),
                environment=self._of_this_run,
                arguments=(
                    f"--aws-url={self._aws_url}",
                    f"--collector={self._ports.address('gpu_metrics')}",
                    f"--port={self._ports.fleet}",
                    f"--time-compression={self._evening.time_factor}",
                    f"--seed={self._options.seed}",
                    "--log-format=console",
                ),
            )

        probe = http_health(f"http://{self._ports.address('fleet')}/_local")
        return ProcessComponent("fleet", spec, probe)

    # --- the services -----------------------------------------------------------------------------

    def _service(self, name: str, *arguments: str) -> ProcessComponent:
        def spec() -> ChildSpec:
            return ChildSpec(
                name,
                name,
                log_file=self._log_file(name),
                arguments=arguments,
                environment={
                    **self._of_this_run,
                    "GAMEKEEPER_LISTEN_ADDRESS": self._ports.address(name),
                    "GAMEKEEPER_LOG_FORMAT": "console",
                    "GAMEKEEPER_DRAIN_SECONDS": "3",
                    **self._aws_settings(),
                    **self._bus_settings(name),
                    **self._shortened(name),
                    **self._settings_of(name),
                },
            )

        return ProcessComponent(name, spec, grpc_health(self._ports.address(name)))

    def _settings_of(self, name: str) -> dict[str, str]:
        address = self._ports.address
        match name:
            case "gpu_metrics":
                # CloudWatch's own resolution is a minute; the local cloud takes it more often.
                return {"GPU_METRICS_CLOUDWATCH_INTERVAL_SECONDS": "10"}
            case "ai_router":
                return {
                    "AI_ROUTER_COLLECTOR_ADDRESS": address("gpu_metrics"),
                    "GAMEKEEPER_MAX_CONCURRENT_STREAMS": "5000",
                }
            case "autoscaler":
                return {
                    "AUTOSCALER_DATABASE_URL": self._postgres.url("autoscaler"),
                    "AUTOSCALER_COLLECTOR": address("gpu_metrics"),
                    "AUTOSCALER_ROUTERS": address("ai_router"),
                    "AUTOSCALER_REPLICA_ID": "local",
                    # Production decides every 5 s, a fraction of its cold starts; so does this.
                    "AUTOSCALER_TICK_SECONDS": "0.5",
                    "AUTOSCALER_DEMAND_WINDOW_SECONDS": "3",
                    # A single replica need not wait long for the lease of one that was killed.
                    "AUTOSCALER_LEASE_SECONDS": "3",
                    "AUTOSCALER_LEASE_RENEW_SECONDS": "0.8",
                }
            case "knowledge_base":
                return {
                    "KNOWLEDGE_BASE_DATABASE_URL": self._postgres.url(
                        "knowledge_base",
                        user=_KNOWLEDGE_BASE_ROLE,
                        password=self._role_password(_KNOWLEDGE_BASE_ROLE),
                    ),
                    "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": self._postgres.url("knowledge_base"),
                    "KNOWLEDGE_BASE_SERVICE_ROLE": _KNOWLEDGE_BASE_ROLE,
                }
        raise ValueError(f"{name!r} is none of {', '.join(SERVICES)}")

    def _shortened(self, name: str) -> dict[str, str]:
        shortened = {
            variable: self._evening.shortened(seconds)
            for variable, seconds in SHORTENED_SETTINGS.get(name, {}).items()
        }
        return {
            variable: f"{max(seconds, _LEAST_SECONDS.get(variable, 0.1)):.3f}"
            for variable, seconds in shortened.items()
        }

    def _aws_settings(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self._aws_url,
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
            # No profile of the user's may point these processes at a real account.
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def _bus_settings(self, name: str) -> dict[str, str]:
        if name == "ai_router":
            return {}
        settings = {"GAMEKEEPER_EVENTS_TOPIC_ARN": topic_arn(_REGION)}
        if name in _READERS:
            settings |= self._reader_settings(_READERS[name])
        return settings

    def _reader_settings(self, queue: str) -> dict[str, str]:
        return {
            "GAMEKEEPER_EVENTS_QUEUE_URL": queue_url(self._aws_url, queue),
            "GAMEKEEPER_EVENTS_DEAD_LETTER_QUEUE_URL": queue_url(
                self._aws_url, queue + DEAD_LETTERS_SUFFIX
            ),
            # The local AWS answers a long poll by looking again and again: one at a time.
            "GAMEKEEPER_EVENTS_RECEIVE_CALLS_AT_ONCE": "1",
        }

    def _role_password(self, role: str) -> str:
        """The same for as long as the cluster lives, and known to whoever may read its own."""
        key = self._postgres.password.encode()
        return hmac.new(key, role.encode(), hashlib.sha256).hexdigest()

    @property
    def _aws_url(self) -> str:
        return f"http://{self._ports.address('aws')}"

    def _log_file(self, name: str) -> Path:
        """One log per run: a process that is started again goes on in it."""
        if name not in self._logs:
            self._logs[name] = self._data.fresh_log(name)
        return self._logs[name]
