"""Lets a call through only when the caller's role is in the method's allow-list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from servicekit.caller import (
    ANONYMOUS_CALLER,
    LOOPBACK_CALLER,
    Caller,
    parse_identity,
    set_current_caller,
)
from servicekit.errors import PermissionDenied, Unauthenticated
from servicekit.interceptors.call import Call, Proceed
from servicekit.method_policies import Role

__all__ = ["AuthorisationInterceptor"]

_OPEN_TO_ALL = "/grpc.health.v1.Health/"
# Only the URI SAN counts: whoever may choose a common name or a DNS name may not choose a role.
# gRPC sets this property when the certificate has exactly one URI SAN and that is a SPIFFE ID.
_IDENTITY_PROPERTY = "peer_spiffe_id"


class AuthorisationInterceptor:
    """Denies by default: a method without an allow-list is for operators only.

    Without mutual TLS the server listens on loopback alone; everybody there may call everything.
    """

    def __init__(self, *, mutual_tls: bool) -> None:
        self._mutual_tls = mutual_tls

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Refuses callers without an identity or without a right."""
        if self._mutual_tls:
            call.caller = _caller_of(call.context.auth_context() or {})
            _check(call)
        else:
            call.caller = LOOPBACK_CALLER
        set_current_caller(call.caller)
        return await proceed(call)


def _check(call: Call) -> None:
    if call.path.startswith(_OPEN_TO_ALL):
        return
    caller = call.caller
    if not caller.authenticated:
        raise Unauthenticated(
            "The client certificate carries no identity of this suite; it needs one URI subject "
            "alternative name, spiffe://gamekeeper/<role>/<name>."
        )
    allowed = call.declaration.allowed_roles if call.declaration else {Role.OPERATOR}
    if caller.role not in allowed:
        raise PermissionDenied(
            f"{caller.identity} may not call {call.path}; allowed are "
            + ", ".join(sorted(role.value for role in allowed))
            + ".",
            metadata={"identity": caller.identity, "method": call.path},
        )


def _caller_of(properties: Mapping[str, Iterable[bytes]]) -> Caller:
    identities = list(properties.get(_IDENTITY_PROPERTY, ()))
    if len(identities) != 1:
        return ANONYMOUS_CALLER
    return parse_identity(identities[0].decode("utf-8", "replace")) or ANONYMOUS_CALLER
