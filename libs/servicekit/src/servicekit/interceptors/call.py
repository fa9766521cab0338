"""One RPC on its way through the interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from servicekit.caller import LOOPBACK_CALLER, Caller
from servicekit.method_policies import MethodDeclaration

__all__ = ["Call", "Interceptor"]


@dataclass(slots=True, eq=False)
class Call:
    """What the interceptors know about one RPC.

    Attributes:
        path: `/package.Service/Method`.
        declaration: the method's policy; None for health and reflection, which are not ours.
        context: the gRPC context.
        metadata: the caller's metadata; of repeated keys the last.
        started: monotonic seconds when the call came in.
        caller: who calls; set by authorisation.
        code: name of the final status, `OK` until something fails.
        reason: the error's reason, empty while there is none.
        task: the task that runs the handler.
        in_handler: whether the task is inside our code, where it may be cancelled, rather than in
            gRPC's.
        ended_by_server: set when the server ends the call to shut down.
    """

    path: str
    declaration: MethodDeclaration | None
    context: grpc.aio.ServicerContext[Any, Any]
    metadata: Mapping[str, str | bytes]
    started: float
    task: asyncio.Task[Any]
    caller: Caller = LOOPBACK_CALLER
    code: str = "OK"
    reason: str = ""
    in_handler: bool = True
    ended_by_server: bool = False


class Interceptor(Protocol):
    """Something that stands around every call."""

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Returns what to enter before the handler runs and to leave after it.

        Entering may raise a ServiceError to refuse the call; leaving sees whatever was raised.
        """
        ...
