"""One RPC on its way through the interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc.aio

from servicekit.caller import ANONYMOUS_CALLER, Caller
from servicekit.method_policies import MethodDeclaration

__all__ = ["Call", "Interceptor", "Proceed", "RequestCheck"]


@dataclass(slots=True, eq=False)
class Call:
    """What the interceptors know about one RPC.

    Attributes:
        path: `/package.Service/Method`.
        declaration: the method's policy; None for health and reflection, which are not ours.
        request: the request as bytes, or an iterator of them; None until a single one has arrived.
        context: the gRPC context.
        metadata: the caller's metadata; of repeated keys the last.
        started: monotonic seconds when the call came in.
        task: the task that runs the handler.
        caller: who calls; set by authorisation.
        code: name of the final status, `OK` until something fails.
        reason: the error's reason, empty while there is none.
        interruptible: whether the handler runs, so that the task may be cancelled; afterwards the
            status is on its way and must not be.
        answering: whether the response's headers were sent.
        ended_by_server: set when the server ends the call to shut down.
        streams_requests: whether the method takes a stream of requests.
        long_lived: whether the call is a subscription, which may last.
        gave_way: set when its request had not come and too many others waited for theirs.
    """

    path: str
    declaration: MethodDeclaration | None
    request: Any
    context: grpc.aio.ServicerContext[Any, Any]
    metadata: Mapping[str, str | bytes]
    started: float
    task: asyncio.Task[Any]
    caller: Caller = ANONYMOUS_CALLER
    code: str = "OK"
    reason: str = ""
    interruptible: bool = True
    answering: bool = False
    ended_by_server: bool = False
    streams_requests: bool = False
    long_lived: bool = False
    gave_way: bool = False


Proceed: TypeAlias = Callable[[Call], Awaitable[Any]]
"""Runs the rest of a call: the interceptors further in, then the handler."""


class Interceptor(Protocol):
    """Something that stands around every call."""

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Returns what `proceed(call)` returns, or raises a ServiceError to refuse the call.

        A streamed call has ended, with all its messages sent, when `proceed` returns; whatever was
        raised while the stream was iterated comes out of it.
        """
        ...


class RequestCheck(Protocol):
    """Something that looks at every request message once it is decoded."""

    def check(self, call: Call, request: Any) -> None:
        """Returns when the request may go on, or raises a ServiceError to refuse it."""
        ...
