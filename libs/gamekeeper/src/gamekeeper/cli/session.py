"""What every command shares: addresses, the form of the output, calls, and their failures."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NoReturn, TypeVar

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape

from gamekeeper.addresses import Addresses, find_addresses
from gamekeeper.cli.failures import EXIT_USAGE, explain_failure
from gamekeeper.cli.grpcurl import grpcurl_command
from gaming.ai_router.v1 import ai_router_pb2_grpc
from gaming.autoscaler.v1 import autoscaler_pb2_grpc
from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc
from servicekit.channels import ChannelSettings, open_channel
from servicekit.settings import SettingsError, load_settings

__all__ = [
    "GrpcurlOption",
    "OutputFormat",
    "OutputOption",
    "Session",
    "TimeoutOption",
    "fail",
    "message_json",
    "method_name",
]

T = TypeVar("T")
M = TypeVar("M", bound=Message)

DEFAULT_TIMEOUT_SECONDS = 10.0
_PIPE_WIDTH = 200

_STUBS: Mapping[str, tuple[str, Callable[[grpc.aio.Channel], Any]]] = {
    "gpu_metrics": (
        "gaming.gpu_metrics.v1.GpuMetricsService",
        gpu_metrics_pb2_grpc.GpuMetricsServiceStub,
    ),
    "autoscaler": (
        "gaming.autoscaler.v1.AutoscalerService",
        autoscaler_pb2_grpc.AutoscalerServiceStub,
    ),
    "ai_router": ("gaming.ai_router.v1.AiRouterService", ai_router_pb2_grpc.AiRouterServiceStub),
    "knowledge_base": (
        "gaming.knowledge_base.v1.KnowledgeBaseService",
        knowledge_base_pb2_grpc.KnowledgeBaseServiceStub,
    ),
}


class OutputFormat(StrEnum):
    """How answers are printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    OutputFormat,
    typer.Option(
        "--output", "-o", help="table for people; json is the answer as grpcurl prints it."
    ),
]
GrpcurlOption = Annotated[
    bool,
    typer.Option("--grpcurl", help="Print the equivalent grpcurl command instead of calling."),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", min=0.1, max=3600.0, metavar="SECONDS", help="Longest wait."),
]


def method_name(service: str, method: str) -> str:
    """Returns `package.Service/Method` of a service's method."""
    return f"{_STUBS[service][0]}/{method}"


def message_json(message: Message) -> dict[str, Any]:
    """Returns a message as proto JSON, with fields at their defaults."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


@dataclass(slots=True)
class Session:
    """One command's run. Answers go to standard output, everything else to standard error."""

    addresses: Addresses
    channel: ChannelSettings
    output: OutputFormat = OutputFormat.TABLE
    grpcurl: bool = False
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    @classmethod
    def of(
        cls,
        context: typer.Context,
        output: OutputFormat = OutputFormat.TABLE,
        grpcurl: bool = False,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> Session:
        """Returns the session for a command, with the addresses the root options give."""
        told: Mapping[str, str | None] = context.obj or {}
        try:
            channel = load_settings(ChannelSettings, os.environ)
        except SettingsError as error:
            fail("; ".join(error.problems), exit_code=EXIT_USAGE)
        return cls(find_addresses(told=told), channel, output, grpcurl, timeout_seconds)

    @property
    def as_json(self) -> bool:
        """Whether the answer is wanted as JSON."""
        return self.output is OutputFormat.JSON

    @property
    def console(self) -> Console:
        """Where tables go: as wide as the terminal, and whole where there is none."""
        console = Console(highlight=False)
        return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)

    # --- calls ----------------------------------------------------------------------------------

    def show(
        self,
        service: str,
        method: str,
        request: Message,
        render: Callable[[Any], None],
    ) -> None:
        """Calls a unary method and prints its answer, or prints the grpcurl command."""
        if self.grpcurl:
            self.print_grpcurl(service, method, request)
            return
        self.emit(self.call(service, method, request), render)

    def call(self, service: str, method: str, request: Message) -> Any:
        """Calls a unary method; ends the command when it fails."""
        return self.run(service, self.ask(service, method, request))

    async def ask(self, service: str, method: str, request: Message) -> Any:
        """Calls a unary method within a coroutine; raises what gRPC raises."""
        async with self.open(service) as channel:
            stub = _STUBS[service][1](channel)
            return await getattr(stub, method)(request, timeout=self.timeout_seconds)

    def open(self, service: str) -> grpc.aio.Channel:
        """Opens a channel to a service."""
        return open_channel(self.addresses.of(service), self.channel)

    def stub(self, service: str, channel: grpc.aio.Channel) -> Any:
        """Returns a service's stub on a channel."""
        return _STUBS[service][1](channel)

    def stream(
        self,
        service: str,
        calls: Callable[[Any], AsyncIterable[M]],
        hear: Callable[[M], None],
    ) -> None:
        """Hears each message of a stream until it ends, or Ctrl-C does; fails as `call` does."""

        async def consume() -> None:
            async with self.open(service) as channel:
                async for message in calls(self.stub(service, channel)):
                    hear(message)

        self.run(service, consume())

    def run(self, service: str, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine whose failures are those of `service`."""
        try:
            return asyncio.run(coroutine)
        except grpc.aio.AioRpcError as error:
            self.fail_call(error, service)
        except SettingsError as error:
            fail("; ".join(error.problems), exit_code=EXIT_USAGE)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    # --- output ---------------------------------------------------------------------------------

    def emit(self, message: M, render: Callable[[M], None]) -> None:
        """Prints an answer in the form wanted."""
        if self.as_json:
            self.emit_json(message_json(message))
        else:
            render(message)

    def emit_json(self, document: object, *, one_line: bool = False) -> None:
        """Prints a JSON document."""
        indent = None if one_line else 2
        sys.stdout.write(json.dumps(document, indent=indent, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def print_grpcurl(
        self,
        service: str,
        method: str,
        request: Message,
        *,
        substitutions: Mapping[str, str] | None = None,
        before: str = "",
        after: str = "",
    ) -> None:
        """Prints the grpcurl command of a call, with shell text before and after it."""
        line = grpcurl_command(
            address=self.addresses.of(service),
            method=method_name(service, method),
            request=request,
            tls=self.channel.tls,
            substitutions=substitutions,
        )
        self.print_line(f"{before}{line}{after}")

    def print_line(self, line: str) -> None:
        """Prints a line as it is, however long."""
        sys.stdout.write(line + "\n")

    def fail_call(self, error: grpc.aio.AioRpcError, service: str) -> NoReturn:
        """Says what went wrong with a call and ends the command with its exit code."""
        failure = explain_failure(error, service=service, address=self.addresses.of(service))
        if self.as_json:
            sys.stderr.write(json.dumps(failure.as_json(), ensure_ascii=False) + "\n")
            raise typer.Exit(failure.exit_code)
        fail(failure.sentence, advice=failure.advice, exit_code=failure.exit_code)


def fail(sentence: str, *, advice: str = "", exit_code: int) -> NoReturn:
    """Prints a sentence and what to do, and ends the command."""
    errors = Console(stderr=True, highlight=False)
    errors.print(f"[red]error:[/red] {escape(sentence)}.", soft_wrap=True)
    if advice:
        errors.print(f"       {escape(advice)}", soft_wrap=True)
    raise typer.Exit(exit_code)
