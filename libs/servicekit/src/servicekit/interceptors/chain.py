"""Puts the interceptors around every handler, whatever its kind, and checks what comes in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import grpc
import grpc.aio

from servicekit.clock import Clock
from servicekit.errors import InvalidRequest, ShuttingDown
from servicekit.interceptors.call import Call, Interceptor
from servicekit.interceptors.validation import RequestValidator
from servicekit.method_policies import DeadlineClass, MethodDeclaration

__all__ = ["InterceptorChain"]

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class InterceptorChain(grpc.aio.ServerInterceptor):
    """The one gRPC interceptor of a server; it runs `interceptors` in the order given.

    One composed interceptor costs a fraction of seven stacked ones, and the order stands in one
    place: where this class is constructed.
    """

    def __init__(
        self,
        interceptors: Sequence[Interceptor],
        validator: RequestValidator,
        declarations: Mapping[str, MethodDeclaration],
        clock: Clock,
    ) -> None:
        self._interceptors = tuple(interceptors)
        self._validator = validator
        self._declarations = declarations
        self._clock = clock
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

    def end_streams(self) -> None:
        """Ends all long-lived streams with UNAVAILABLE, so that clients resume elsewhere."""
        self._ending_streams = True
        for call in tuple(self._streams):
            call.ended_by_server = True
            if call.in_handler:
                call.task.cancel()

    def _wrap(self, path: str, handler: Any) -> Handler:
        declaration = self._declarations.get(path)
        # Messages are decoded here rather than by gRPC, whose own failure would show Python text.
        decode = self._decoder(handler.request_deserializer)
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._respond_streaming(path, declaration, handler.stream_stream, decode, True),
                response_serializer=handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._respond_streaming(path, declaration, handler.unary_stream, decode, False),
                response_serializer=handler.response_serializer,
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._respond_once(path, declaration, handler.stream_unary, decode, True),
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._respond_once(path, declaration, handler.unary_unary, decode, False),
            response_serializer=handler.response_serializer,
        )

    def _decoder(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
        def decode(message: bytes) -> Any:
            if deserialize is None:
                return message
            try:
                request = deserialize(message)
            except Exception:  # noqa: BLE001  # decoders raise library-specific errors
                raise InvalidRequest(
                    "The request is not a valid message of this method; check the client's "
                    "protocol version."
                ) from None
            self._validator.check(request)
            return request

        return decode

    def _respond_once(
        self,
        path: str,
        declaration: MethodDeclaration | None,
        behaviour: Callable[..., Any],
        decode: Callable[[bytes], Any],
        streams_requests: bool,
    ) -> Callable[..., Awaitable[Any]]:
        async def respond(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            call = self._begin(path, declaration, context)
            async with AsyncExitStack() as stack:
                for interceptor in self._interceptors:
                    await stack.enter_async_context(interceptor.around(call))
                decoded = _decoded(request, decode) if streams_requests else decode(request)
                return await behaviour(decoded, context)

        return respond

    def _respond_streaming(
        self,
        path: str,
        declaration: MethodDeclaration | None,
        behaviour: Callable[..., Any],
        decode: Callable[[bytes], Any],
        streams_requests: bool,
    ) -> Callable[..., AsyncIterator[Any]]:
        long_lived = declaration is not None and declaration.deadline_class is DeadlineClass.STREAM

        async def respond(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            call = self._begin(path, declaration, context)
            if long_lived:
                self._streams.add(call)
            try:
                async with AsyncExitStack() as stack:
                    for interceptor in self._interceptors:
                        await stack.enter_async_context(interceptor.around(call))
                    if long_lived and self._ending_streams:
                        raise ShuttingDown("This server is shutting down; open the stream again.")
                    decoded = _decoded(request, decode) if streams_requests else decode(request)
                    responses = behaviour(decoded, context)
                    if not hasattr(responses, "__aiter__"):
                        await responses  # a handler in the style that calls context.write itself
                        return
                    stack.push_async_callback(responses.aclose)
                    # The yield stands inside the `async with`, so that an error raised while the
                    # stream is iterated passes through every interceptor like any other.
                    async for response in responses:
                        call.in_handler = False
                        yield response
                        call.in_handler = True
                        if call.ended_by_server:
                            raise ShuttingDown(
                                "This server is shutting down; open the stream again."
                            )
            finally:
                self._streams.discard(call)

        return respond

    def _begin(
        self,
        path: str,
        declaration: MethodDeclaration | None,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Call:
        task = asyncio.current_task()
        if task is None:  # gRPC runs every handler in a task of its own
            raise RuntimeError("an RPC handler ran outside a task")
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        return Call(
            path=path,
            declaration=declaration,
            context=context,
            metadata=metadata,
            started=self._clock.monotonic(),
            task=task,
        )


async def _decoded(
    requests: AsyncIterator[bytes], decode: Callable[[bytes], Any]
) -> AsyncIterator[Any]:
    async for request in requests:
        yield decode(request)
