"""Keeps grpc.aio from answering an undecodable path with the text of a Python exception.

grpc.aio decodes `:path` before any interceptor or handler sees the call, and tells the caller of
bytes that are no UTF-8 `Unexpected <class 'UnicodeDecodeError'>: …`. It offers no setting and no
place to hook in, so one function of its Cython module is replaced, the one that runs a call's
coroutine. The version of grpcio is pinned below 1.83, and a test sends such paths to a real
service; a grpcio without this function is left alone.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from grpc import StatusCode
from grpc._cython import cygrpc

__all__ = ["answer_undecodable_paths"]

_RUN_CALL = "_handle_exceptions"
_NEEDED = (_RUN_CALL, "_send_error_status_from_server", "SendInitialMetadataOperation")
_MESSAGE = "Method not found!"  # what gRPC says of every other unknown path


def answer_undecodable_paths() -> bool:
    """Makes all servers of this process answer such paths UNIMPLEMENTED; returns whether it could.

    Repeating it does no harm.
    """
    if not all(hasattr(cygrpc, name) for name in _NEEDED):
        return False
    original = getattr(cygrpc, _RUN_CALL)
    if getattr(original, "answers_undecodable_paths", False):
        return True

    async def run_call(state: Any, call: Coroutine[Any, Any, None], loop: Any) -> None:
        aborted: list[BaseException] = []
        await original(state, _answered(state, call, loop, aborted), loop)
        # gRPC keeps it with the call, which its traceback leads back to: without this a wave of
        # refused calls stays in memory until the garbage collector comes by.
        for error in aborted:
            error.__traceback__ = None

    run_call.answers_undecodable_paths = True  # type: ignore[attr-defined]  # a mark for the next call
    setattr(cygrpc, _RUN_CALL, run_call)
    return True


async def _answered(
    state: Any, call: Coroutine[Any, Any, None], loop: Any, aborted: list[BaseException]
) -> None:
    try:
        await call
    except cygrpc.AbortError as error:
        aborted.append(error)
        raise
    except UnicodeDecodeError:
        # None comes from a handler: the interceptors let no such error pass.
        headers = cygrpc.SendInitialMetadataOperation((), 0)
        await cygrpc._send_error_status_from_server(  # noqa: SLF001  # see the module's first lines
            state, StatusCode.UNIMPLEMENTED.value[0], _MESSAGE, (), headers, loop
        )
