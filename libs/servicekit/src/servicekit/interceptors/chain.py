"""Puts the interceptors around every handler, whatever its kind, and checks what comes in."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio

from servicekit.clock import Clock
from servicekit.errors import InvalidRequest, ShuttingDown, SlowSubscriber
from servicekit.interceptors.call import Call, Interceptor, Proceed, RequestCheck
from servicekit.method_policies import DeadlineClass, MethodDeclaration

__all__ = ["InterceptorChain"]

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Decode: TypeAlias = Callable[[Call, bytes], Any]
Read: TypeAlias = Callable[[Call, Decode], Any]

_NO_MEMORY = "Arena alloc failed"
"""What protobuf's C code says of a message, good or bad, for which it found no memory (upb,
upb_DecodeStatus_String); it raises no MemoryError."""


class InterceptorChain(grpc.aio.ServerInterceptor):
    """The one gRPC interceptor of a server; it runs `interceptors` in the order given.

    `checks` see every request message after them, once it is decoded.

    One composed interceptor costs a fraction of seven stacked ones, and the order stands in one
    place: where this class is constructed.

    Streamed responses are written here, by the task that runs the handler, instead of being yielded
    to gRPC. So a cancellation, a deadline or an error always strikes inside the interceptors, also
    while a message waits for a slow reader, and the handler's generator is closed by its own task
    at once rather than by the garbage collector.
    """

    def __init__(
        self,
        interceptors: Sequence[Interceptor],
        checks: Sequence[RequestCheck],
        declarations: Mapping[str, MethodDeclaration],
        clock: Clock,
        *,
        reader_patience_seconds: float,
    ) -> None:
        self._interceptors = tuple(interceptors)
        self._checks = tuple(checks)
        self._declarations = declarations
        self._clock = clock
        self._reader_patience_seconds = reader_patience_seconds
        self._streams: set[Call] = set()
        self._ending_streams = False
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler gRPC found, wrapped; the wrapping is made once per method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = str(handler_call_details.method)
        wrapped = self._handlers.get(path)
        if wrapped is None:
            wrapped = self._handlers[path] = self._wrap(path, handler)
        return wrapped

    def end_streams(self, *, foreign: bool = False) -> None:
        """Ends all long-lived streams with UNAVAILABLE, so that clients resume elsewhere.

        Args:
            foreign: end streams of health and reflection too, which are not ours; a watcher of
                health should first be told that the service no longer serves.
        """
        self._ending_streams = True
        for call in tuple(self._streams):
            ours = call.declaration is not None
            if (ours or foreign) and call.interruptible and not call.ended_by_server:
                call.ended_by_server = True
                call.task.cancel()

    def _wrap(self, path: str, handler: Any) -> Handler:
        # Messages are decoded here rather than by gRPC, whose own failure would show Python text.
        decode = self._decoder(handler.request_deserializer)
        streams_requests = bool(handler.request_streaming)
        read = _decoded if streams_requests else _decoded_once
        # To gRPC every method takes a stream: so a single request, too, is waited for here, where
        # the wait has an end. It costs no more.
        if handler.response_streaming:
            behaviour = handler.stream_stream if streams_requests else handler.unary_stream
            return grpc.stream_stream_rpc_method_handler(
                self._behaviour(
                    path,
                    _streaming(behaviour, decode, read, self._reader_patience_seconds),
                    streams_requests,
                    True,
                ),
                response_serializer=handler.response_serializer,
            )
        behaviour = handler.stream_unary if streams_requests else handler.unary_unary
        return grpc.stream_unary_rpc_method_handler(
            self._behaviour(path, _single(behaviour, decode, read), streams_requests, False),
            response_serializer=handler.response_serializer,
        )

    def _behaviour(
        self, path: str, handle: Proceed, streams_requests: bool, streams_responses: bool
    ) -> Callable[..., Awaitable[Any]]:
        declaration = self._declarations.get(path)
        proceed: Proceed = _until_answered(handle)
        for interceptor in reversed(self._interceptors):
            proceed = functools.partial(interceptor.intercept, proceed=proceed)
        clock = self._clock
        long_lived = (
            streams_responses
            if declaration is None
            else declaration.deadline_class is DeadlineClass.STREAM
        )

        def begin(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Call:
            call = _begin(path, declaration, request, context, clock)
            call.streams_requests, call.long_lived = streams_requests, long_lived
            return call

        async def respond(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            return await proceed(begin(request, context))

        if not long_lived:
            return respond

        async def respond_with_stream(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> Any:
            call = begin(request, context)
            self._streams.add(call)
            call.ended_by_server = self._ending_streams and declaration is not None
            try:
                return await proceed(call)
            finally:
                self._streams.discard(call)

        return respond_with_stream

    def _decoder(self, deserialize: Callable[[bytes], Any] | None) -> Decode:
        checks = self._checks

        def decode(call: Call, message: bytes) -> Any:
            if deserialize is None:
                return message
            try:
                request = deserialize(message)
            except MemoryError:
                raise  # no fault of the message's
            except Exception as error:  # noqa: BLE001  # decoders raise library-specific errors
                if _NO_MEMORY in str(error):
                    raise MemoryError from None
                raise InvalidRequest(
                    "The request is not a valid message of this method; check the client's "
                    "protocol version."
                ) from None
            for each in checks:
                each.check(call, request)
            return request

        return decode


def _until_answered(handle: Proceed) -> Proceed:
    async def run(call: Call) -> Any:
        if call.ended_by_server:  # it came in while the server was already ending streams
            raise ShuttingDown("This server is shutting down; open the stream again.")
        try:
            return await handle(call)
        finally:
            call.interruptible = False

    return run


def _single(behaviour: Callable[..., Any], decode: Decode, read: Read) -> Proceed:
    async def handle(call: Call) -> Any:
        return await behaviour(read(call, decode), call.context)

    return handle


def _streaming(
    behaviour: Callable[..., Any], decode: Decode, read: Read, patience_seconds: float
) -> Proceed:
    async def handle(call: Call) -> None:
        responses = behaviour(read(call, decode), call.context)
        if not hasattr(responses, "__aiter__"):
            await responses  # a handler in the style that calls context.write itself
            return
        async with aclosing(responses):
            async for response in responses:
                await _write(call, response, patience_seconds)

    return handle


async def _write(call: Call, response: Any, patience_seconds: float) -> None:
    try:
        if not call.answering:
            call.answering = True
            await _send_headers(call)
        # A reader that grants no room keeps its connection, and with it the stream, for an hour.
        async with asyncio.timeout(patience_seconds) as limit:
            await call.context.write(response)
    except grpc.aio.InternalError:
        # The connection is gone; gRPC's own cancellation of this task is about to come.
        raise asyncio.CancelledError from None
    except TimeoutError:
        if not limit.expired():
            raise
        raise SlowSubscriber(
            f"The reader took no message for {patience_seconds:g} s and was dropped; call again "
            "and read faster."
        ) from None


async def _send_headers(call: Call) -> None:
    """Sends the response's headers, whole even when the call is cancelled meanwhile.

    gRPC would send them with the first message and forget it when that is interrupted; then it
    would send them again with the final status, which fails, and the status with it. Unlike a
    message they never wait for the reader.
    """
    sending = asyncio.ensure_future(call.context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait({sending})
        raise


def _begin(
    path: str,
    declaration: MethodDeclaration | None,
    request: Any,
    context: grpc.aio.ServicerContext[Any, Any],
    clock: Clock,
) -> Call:
    task = asyncio.current_task()
    if task is None:  # gRPC runs every handler in a task of its own
        raise RuntimeError("an RPC handler ran outside a task")
    metadata = dict(context.invocation_metadata() or ())
    return Call(path, declaration, request, context, metadata, clock.monotonic(), task)


def _decoded_once(call: Call, decode: Decode) -> Any:
    return decode(call, call.request)


async def _decoded(call: Call, decode: Decode) -> AsyncIterator[Any]:
    async for request in call.request:
        yield decode(call, request)
