"""Client channels with the suite's defaults: deadlines, bounded retries, keepalive, mutual TLS."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from servicekit.method_policies import (
    MethodDeclaration,
    declarations_of_loaded_services,
)
from servicekit.server import MAXIMUM_METADATA_BYTES
from servicekit.settings import SettingsError, setting
from servicekit.tls import TlsSettings, is_loopback

__all__ = ["ChannelSettings", "open_channel"]

MAXIMUM_RESPONSE_BYTES = 16 * 1024 * 1024


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


def open_channel(target: str, settings: ChannelSettings | None = None) -> grpc.aio.Channel:
    """Returns a channel to `target` (`host:port` or any gRPC name).

    Methods whose proto says that a repeat does no harm are retried with backoff and throttling when
    the server is unavailable. A call without a timeout gets the longest its method allows. A frozen
    peer is noticed within three seconds of the next keepalive.

    Import the generated modules of the services to call first: their retry policies are read from
    them here.

    Raises:
        SettingsError: when `target` is not on loopback and no certificate is set.
    """
    settings = settings or ChannelSettings()
    declarations = declarations_of_loaded_services()
    options = _channel_options(declarations, settings.maximum_attempts)
    interceptors: list[Any] = [
        kind(declarations)
        for kind in (
            _UnaryUnaryDeadline,
            _UnaryStreamDeadline,
            _StreamUnaryDeadline,
            _StreamStreamDeadline,
        )
    ]
    if settings.tls.enabled:
        return grpc.aio.secure_channel(
            target, settings.tls.channel_credentials(), options=options, interceptors=interceptors
        )
    if not is_loopback(target):
        raise SettingsError(
            [
                (
                    f"'{target}' cannot be called in plaintext: only loopback may be; set the "
                    "GAMEKEEPER_TLS_* files"
                )
            ]
        )
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)


def _channel_options(
    declarations: dict[str, MethodDeclaration], maximum_attempts: int
) -> list[tuple[str, int | str]]:
    return [
        ("grpc.service_config", json.dumps(_service_config(declarations, maximum_attempts))),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", MAXIMUM_RESPONSE_BYTES),
        ("grpc.max_metadata_size", MAXIMUM_METADATA_BYTES),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ]


def _service_config(
    declarations: dict[str, MethodDeclaration], maximum_attempts: int
) -> dict[str, Any]:
    """Returns a service config by the gRPC retry design (A6) with client-side round robin."""
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # Retries stop while fewer than half of the last tries succeed.
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
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
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return config


class _Deadline:
    """Gives a call without a timeout its method's longest one, so that no call waits for ever."""

    def __init__(self, declarations: dict[str, MethodDeclaration]) -> None:
        self._declarations = declarations

    def _with_deadline(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        if details.timeout is not None:
            return details
        path = details.method.decode() if isinstance(details.method, bytes) else details.method
        declaration = self._declarations.get(path)
        timeout = declaration.deadline_seconds if declaration else 10.0
        return grpc.aio.ClientCallDetails(
            details.method, timeout, details.metadata, details.credentials, details.wait_for_ready
        )


Continuation = Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]]


class _UnaryUnaryDeadline(_Deadline, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._with_deadline(client_call_details), request)


class _UnaryStreamDeadline(_Deadline, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(self._with_deadline(client_call_details), request)


class _StreamUnaryDeadline(_Deadline, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Continuation, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self._with_deadline(client_call_details), request_iterator)


class _StreamStreamDeadline(_Deadline, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Continuation, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self._with_deadline(client_call_details), request_iterator)
