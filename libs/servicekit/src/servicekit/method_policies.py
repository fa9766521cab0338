"""What each RPC declared about itself in its proto: who may call, idempotency, deadline class."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum

from google.protobuf import descriptor as protobuf_descriptor

from gaming.common.v1 import method_policy_pb2

__all__ = [
    "DEADLINE_SECONDS",
    "DeadlineClass",
    "MethodDeclaration",
    "Role",
    "declarations_of",
    "declarations_of_loaded_services",
]


class Role(Enum):
    """Who a caller is; the value is the role's name inside an identity URI."""

    GAME_SERVICE = "game-service"
    OPERATOR = "operator"
    GPU_AGENT = "gpu-agent"
    SUITE_SERVICE = "suite-service"


class DeadlineClass(Enum):
    """How long a call of a kind may take."""

    INTERACTIVE = "interactive"
    GENERATION = "generation"
    BATCH = "batch"
    STREAM = "stream"


DEADLINE_SECONDS = {
    DeadlineClass.INTERACTIVE: 10.0,
    DeadlineClass.GENERATION: 120.0,
    DeadlineClass.BATCH: 1800.0,
    DeadlineClass.STREAM: 3600.0,
}
"""The longest a call may take; servers cap to it and clients default to it."""

_ROLES = {
    method_policy_pb2.ROLE_GAME_SERVICE: Role.GAME_SERVICE,
    method_policy_pb2.ROLE_OPERATOR: Role.OPERATOR,
    method_policy_pb2.ROLE_GPU_AGENT: Role.GPU_AGENT,
    method_policy_pb2.ROLE_SUITE_SERVICE: Role.SUITE_SERVICE,
}
_DEADLINES = {
    method_policy_pb2.DEADLINE_CLASS_INTERACTIVE: DeadlineClass.INTERACTIVE,
    method_policy_pb2.DEADLINE_CLASS_GENERATION: DeadlineClass.GENERATION,
    method_policy_pb2.DEADLINE_CLASS_BATCH: DeadlineClass.BATCH,
    method_policy_pb2.DEADLINE_CLASS_STREAM: DeadlineClass.STREAM,
}
_RETRYABLE = frozenset(
    {
        method_policy_pb2.IDEMPOTENCY_READ_ONLY,
        method_policy_pb2.IDEMPOTENCY_IDEMPOTENT,
        method_policy_pb2.IDEMPOTENCY_REQUEST_ID,
    }
)


@dataclass(frozen=True, slots=True)
class MethodDeclaration:
    """One RPC's declaration.

    Attributes:
        path: its HTTP/2 path, `/package.Service/Method`.
        allowed_roles: who may call it.
        retryable: whether a repeat does no harm.
        deadline_class: how long a call may take.
        client_streaming: whether requests are streamed.
        server_streaming: whether responses are streamed.
        cost: units a call takes of a rate budget; 1 where the proto names none.
    """

    path: str
    allowed_roles: frozenset[Role]
    retryable: bool
    deadline_class: DeadlineClass
    client_streaming: bool
    server_streaming: bool
    cost: int

    @property
    def deadline_seconds(self) -> float:
        """The longest a call of this method may take."""
        return DEADLINE_SECONDS[self.deadline_class]


def declarations_of(service: protobuf_descriptor.ServiceDescriptor) -> list[MethodDeclaration]:
    """Returns the declaration of every method of `service`.

    Raises:
        ValueError: when a method declares nothing, or leaves a part of it unspecified.
    """
    return [_declaration(service.full_name, method) for method in service.methods]


def declarations_of_loaded_services() -> dict[str, MethodDeclaration]:
    """Returns the declarations of all the suite's services whose code is imported, by path."""
    found: dict[str, MethodDeclaration] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("gaming.") and name.endswith("_pb2"):
            for service in module.DESCRIPTOR.services_by_name.values():
                found.update((item.path, item) for item in declarations_of(service))
    return found


def _declaration(
    service_name: str, method: protobuf_descriptor.MethodDescriptor
) -> MethodDeclaration:
    policy = method.GetOptions().Extensions[method_policy_pb2.method_policy]
    path = f"/{service_name}/{method.name}"
    roles = frozenset(_ROLES[role] for role in policy.allowed_roles if role in _ROLES)
    if (
        not roles
        or policy.deadline_class not in _DEADLINES
        or policy.idempotency == method_policy_pb2.IDEMPOTENCY_UNSPECIFIED
    ):
        raise ValueError(f"{path} declares no complete method_policy option in its proto")
    return MethodDeclaration(
        path=path,
        allowed_roles=roles,
        retryable=policy.idempotency in _RETRYABLE,
        deadline_class=_DEADLINES[policy.deadline_class],
        client_streaming=bool(method.client_streaming),
        server_streaming=bool(method.server_streaming),
        cost=policy.cost or 1,
    )
