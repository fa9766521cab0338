"""Who makes the call that is being handled."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass

from servicekit.method_policies import Role

__all__ = [
    "ANONYMOUS_CALLER",
    "IDENTITY_PREFIX",
    "LOOPBACK_CALLER",
    "Caller",
    "current_caller",
    "parse_identity",
]

IDENTITY_PREFIX = "spiffe://gamekeeper/"
"""Identities are URI SANs `spiffe://gamekeeper/<role>/<name>` (SPIFFE ID syntax)."""

# The characters and segments the SPIFFE ID standard allows in a path (§2.2).
_SPIFFE_PATH = re.compile(r"[a-z-]+(/(?!\.\.?(/|$))[A-Za-z0-9._-]+)+")


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller's identity; `role` is None where nobody authenticated."""

    identity: str
    role: Role | None
    authenticated: bool

    @property
    def name(self) -> str:
        """What follows the role in the identity, `host-1` of `…/gpu-agent/host-1`; else empty."""
        return self.identity[len(IDENTITY_PREFIX) :].partition("/")[2] if self.role else ""


LOOPBACK_CALLER = Caller(identity="loopback", role=None, authenticated=False)
"""Whoever calls over plaintext, which only loopback allows; it may call everything."""

ANONYMOUS_CALLER = Caller(identity="anonymous", role=None, authenticated=False)
"""Whoever shows a certificate of our authority without an identity of the suite."""

_current: ContextVar[Caller] = ContextVar("servicekit_caller", default=LOOPBACK_CALLER)


def current_caller() -> Caller:
    """Returns the caller of the RPC being handled, or the loopback caller outside of one."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Makes `caller` the current one for the rest of the running task."""
    _current.set(caller)


def parse_identity(uri: str) -> Caller | None:
    """Returns the caller a URI SAN names, or None when it is not one of ours."""
    if not uri.startswith(IDENTITY_PREFIX) or not _SPIFFE_PATH.fullmatch(uri, len(IDENTITY_PREFIX)):
        return None
    role_name, _, _ = uri[len(IDENTITY_PREFIX) :].partition("/")
    try:
        return Caller(identity=uri, role=Role(role_name), authenticated=True)
    except ValueError:
        return None
