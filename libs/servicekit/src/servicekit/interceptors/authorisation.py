"""Lets a call through only when the caller's role is in the method's allow-list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from servicekit.caller import LOOPBACK_CALLER, Caller, parse_identity, set_current_caller
from servicekit.errors import PermissionDenied, Unauthenticated
from servicekit.interceptors.call import Call
from servicekit.method_policies import Role

__all__ = ["AuthorisationInterceptor"]

_OPEN_TO_ALL = "/grpc.health.v1.Health/"


class AuthorisationInterceptor:
    """Denies by default: a method without an allow-list is for operators only.

    Without mutual TLS the server listens on loopback alone; everybody there may call everything.
    """

    def __init__(self, *, mutual_tls: bool) -> None:
        self._mutual_tls = mutual_tls

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Refuses callers without an identity or without a right."""
        call.caller = self._identify(call)
        set_current_caller(call.caller)
        yield

    def _identify(self, call: Call) -> Caller:
        if not self._mutual_tls:
            return LOOPBACK_CALLER
        caller = _caller_of(call)
        if call.path.startswith(_OPEN_TO_ALL):
            return caller or LOOPBACK_CALLER
        if caller is None:
            raise Unauthenticated(
                "The client certificate carries no identity of this suite; it needs a URI subject "
                "alternative name spiffe://gamekeeper/<role>/<name>."
            )
        allowed = call.declaration.allowed_roles if call.declaration else {Role.OPERATOR}
        if caller.role not in allowed:
            raise PermissionDenied(
                f"{caller.identity} may not call {call.path}; allowed are "
                + ", ".join(sorted(role.value for role in allowed))
                + ".",
                metadata={"identity": caller.identity, "method": call.path},
            )
        return caller


def _caller_of(call: Call) -> Caller | None:
    properties = call.context.auth_context() or {}
    for values in properties.values():
        for value in values:
            caller = parse_identity(value.decode("utf-8", "replace"))
            if caller is not None:
                return caller
    return None
