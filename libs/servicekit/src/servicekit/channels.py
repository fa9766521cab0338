"""Client channels with the suite's defaults: deadlines, bounded retries, keepalive, mutual TLS."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from servicekit.managed_channel import ManagedChannel
from servicekit.method_policies import (
    MethodDeclaration,
    declarations_of_loaded_services,
)
from servicekit.settings import SettingsError, setting
from servicekit.tls import TlsSettings, is_loopback
from servicekit.transport_limits import MAXIMUM_METADATA_BYTES, MAXIMUM_RESPONSE_BYTES

__all__ = ["ChannelSettings", "open_channel"]

_FOREIGN_DEADLINE_SECONDS = 10.0
"""The default deadline of services that declare none, such as health and reflection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """How this process calls other services."""

    tls: TlsSettings = TlsSettings()
    maximum_attempts: int = setting(
        "GAMEKEEPER_CLIENT_MAX_ATTEMPTS",
        default=4,
        minimum=1,
        maximum=5,
        help="tries of a call that may be retried",
    )
    maximum_connections: int = setting(
        "GAMEKEEPER_CLIENT_MAX_CONNECTIONS",
        default=4,
        minimum=1,
        maximum=16,
        help="connections to one service, opened as calls at once pass 100 on each",
    )


def open_channel(target: str, settings: ChannelSettings | None = None) -> grpc.aio.Channel:
    """Returns a channel to `target` (`host:port` or any gRPC name).

    Methods whose proto says that a repeat does no harm are retried with backoff and throttling when
    the server is unavailable or, flooded with calls, drops them unread. A call without a timeout
    gets the longest its method allows. Calls to a frozen peer end with UNAVAILABLE within three
    seconds. Changed certificate files are used for later calls within a second or two; calls under
    way are not disturbed.

    A server takes 100 calls at once on one connection; the channel opens further connections as
    more are under way, up to `settings.maximum_connections`. Calls beyond wait, within their
    deadlines, for others to end.

    Import the generated modules of the services to call first: their retry policies are read from
    them here.

    Raises:
        SettingsError: when `target` is not on loopback and no certificate is set.
    """
    settings = settings or ChannelSettings()
    declarations = declarations_of_loaded_services()
    options = _channel_options(declarations, settings.maximum_attempts)
    tls = settings.tls
    if not tls.enabled and not is_loopback(target):
        raise SettingsError(
            [
                (
                    f"'{target}' cannot be called in plaintext: only loopback may be; set the "
                    "GAMEKEEPER_TLS_* files"
                )
            ]
        )
    certificates = tls.follow() if tls.enabled else None

    def connect() -> grpc.aio.Channel:
        if certificates is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, certificates.channel_credentials(), options=options)

    return ManagedChannel(
        connect,
        (lambda: None) if certificates is None else certificates.version,
        _deadline_seconds(declarations),
        settings.maximum_connections,
    )


def _channel_options(
    declarations: dict[str, MethodDeclaration], maximum_attempts: int
) -> list[tuple[str, int | str]]:
    return [
        ("grpc.service_config", json.dumps(_service_config(declarations, maximum_attempts))),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", MAXIMUM_RESPONSE_BYTES),
        ("grpc.max_metadata_size", MAXIMUM_METADATA_BYTES),
        # A frozen peer costs up to twice 0.25 s of silence, 1 s of waiting for the ping's answer,
        # and 0.75 s for the connection a repeated call waits for: every call is answered within
        # 3 s, with room for a busy machine. gRPC's core answers pings without Python, so a busy
        # peer is not taken for a frozen one. The price: on a link of 1 Mbit/s a message above
        # about 100 KB holds a ping up for too long.
        ("grpc.keepalive_time_ms", 250),
        ("grpc.keepalive_timeout_ms", 1_000),
        ("grpc.http2.ping_timeout_ms", 1_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 0),
        # Bandwidth probes are pings as well, and would be judged by the same second.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In gRPC's core this bounds one attempt, handshake included; it does not delay the next.
        ("grpc.min_reconnect_backoff_ms", 750),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Channels with equal options would otherwise share one connection and its 100 streams.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ]


def _service_config(
    declarations: dict[str, MethodDeclaration], maximum_attempts: int
) -> dict[str, Any]:
    """Returns a service config by the gRPC retry design (A6) with client-side round robin."""
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # A failed try takes a token, a success returns a tenth; below half there are no retries.
        # All calls on a connection fail together when its peer dies, and a few connections of 100
        # calls each must not use up the half. 1000 is the most the design allows.
        "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
    }
    names = [
        dict(zip(("service", "method"), item.path[1:].split("/"), strict=True))
        for item in declarations.values()
        if item.retryable and not item.client_streaming
    ]
    if names and maximum_attempts > 1:
        config["methodConfig"] = [
            {
                "name": names,
                "retryPolicy": {
                    "maxAttempts": maximum_attempts,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    # A server that many calls stand before ends further ones with CANCELLED
                    # before anything looked at them. A caller's own cancelling is never repeated.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    return config


def _deadline_seconds(declarations: dict[str, MethodDeclaration]) -> Callable[[str], float]:
    def longest(method: str) -> float:
        declaration = declarations.get(method)
        if declaration is None:  # its module was imported after the channel was opened
            declarations.update(declarations_of_loaded_services())
            declaration = declarations.get(method)
        return declaration.deadline_seconds if declaration else _FOREIGN_DEADLINE_SECONDS

    return longest
