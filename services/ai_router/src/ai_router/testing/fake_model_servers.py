"""Model servers without a network: the same promises as the real client, answers under control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from ai_router.domain.generation import FinishReason, GenerationRequest
from ai_router.ports import AnswerEnd, AnswerPiece, FailureKind, ModelServerFailure

__all__ = ["FakeModelServers", "FakeServer"]


@dataclass(slots=True)
class FakeServer:
    """How one server answers.

    Attributes:
        texts: pieces of its answer.
        failure: how it fails; None answers.
        fail_after: pieces sent before it fails.
        gate: a piece is sent only while this is set.
        requests: what it was asked.
        running: answers under way.
    """

    texts: tuple[str, ...] = ("The lamp ", "burns.")
    failure: FailureKind | None = None
    fail_after: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[GenerationRequest] = field(default_factory=list)
    running: int = 0

    def __post_init__(self) -> None:
        self.gate.set()


class FakeModelServers:
    """Servers by endpoint URL; asking one that is not there fails as unreachable."""

    def __init__(self, **servers: FakeServer) -> None:
        self.servers = {f"http://{name}": server for name, server in servers.items()}

    def __getitem__(self, name: str) -> FakeServer:
        return self.servers[f"http://{name}"]

    async def stream(
        self,
        endpoint_url: str,
        model: str,
        request: GenerationRequest,
        first_token_timeout_seconds: float,
    ) -> AsyncGenerator[AnswerPiece, None]:
        """Yields the server's pieces, the last with the end."""
        server = self.servers.get(endpoint_url)
        if server is None:
            raise ModelServerFailure(FailureKind.UNREACHABLE, "nobody listens")
        server.requests.append(request)
        server.running += 1
        try:
            end = AnswerEnd(
                finish_reason=FinishReason.STOP, prompt_tokens=7, output_tokens=len(server.texts)
            )
            for index, text in enumerate(server.texts):
                if server.failure is not None and index == server.fail_after:
                    raise ModelServerFailure(server.failure, "as told")
                await server.gate.wait()
                last = index == len(server.texts) - 1
                yield AnswerPiece(text, end if last else None)
        finally:
            server.running -= 1
